"""Says which extra a verb needs instead of failing on an import."""

from __future__ import annotations

from importlib.util import find_spec

from pft_ray.errors import MissingExtraError

_TRAIN = ("torch", "ray", "transformers", "peft", "safetensors", "pyarrow")


def require_train(verb: str) -> None:
    """Refuses a verb that needs torch and Ray when they are not installed.

    Raises:
        MissingExtraError: Names what is missing and the command that installs it.
    """
    missing = [name for name in _TRAIN if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"`pft {verb}` needs {', '.join(missing)}.",
            "Install them: pip install 'pft-ray[train]'.",
        )
