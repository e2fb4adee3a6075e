"""Names that a test shares with the processes of its cluster; imports nothing."""

from __future__ import annotations

# The variable with the folder of ``scene.json``, and the file of raw attempt keys.
SCENE = "PFT_KILLS"
KEYS = "attempt-keys"
