"""Where the ledger and its key lie: ``$PFT_HOME``, outside every run folder."""

from __future__ import annotations

import os
from pathlib import Path

from pft_ray.telemetry import EventFile


def pft_home() -> Path:
    """Returns ``$PFT_HOME``, by default the user's data folder for pft_ray."""
    named = os.environ.get("PFT_HOME")
    if named:
        return Path(named).expanduser().resolve()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().resolve() / "pft_ray"


def events_file() -> EventFile:
    """Returns the file that is told of what is done to budgets outside of runs."""
    return EventFile(pft_home() / "events.jsonl")


def keys_dir() -> Path:
    """Returns the folder of the fingerprint key."""
    return pft_home() / "keys"


def ledger_location(url: str | None, base_dir: Path | None = None) -> str:
    """Returns the ledger's URL or absolute path.

    Args:
        url: What the job or command line names; None for ``$PFT_HOME/ledger.db``.
        base_dir: Folder that a relative path starts from; default: the current one.
    """
    if url is None:
        return str(pft_home() / "ledger.db")
    if "://" in url:
        return url
    return str(((base_dir or Path.cwd()) / Path(url).expanduser()).resolve())
