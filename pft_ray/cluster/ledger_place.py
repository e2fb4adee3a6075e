"""A ledger's place as it may travel through Ray.

What an actor is constructed with is kept by Ray's control store, and on disk where
that store survives its head node. A database's address may hold a password, so only
the name of a file travels; the file is the owner's alone (0600) and lies beside the
fingerprint key, on the node where coordinator and driver run.
"""

from __future__ import annotations

import os
from pathlib import Path

from pft_ray.errors import InputError
from pft_ray.ledger import Ledger
from pft_ray.ledger.postgres_url import is_postgres

_SCHEME = "address-file:"
# A restart of the database; less than a worker waits for its coordinator.
PATIENCE_S = 45.0


def hide_place(location: str, keys_dir: Path, run_id: str) -> str:
    """Writes a database's address to a file of its own; a file's path stays as it is.

    Args:
        location: Path or URL of the ledger.
        keys_dir: Folder for the file; made when it is missing (0700).
        run_id: The run; each has its own file.

    Returns:
        What :func:`read_place` reads.

    Guarantee:
        No part of a database's address is in what this returns.
    """
    if not is_postgres(location):
        return location
    keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = keys_dir / f"ledger-of-{run_id}"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(location)
    draft.replace(path)
    return f"{_SCHEME}{path}"


def read_place(place: str) -> str:
    """Returns the ledger's path or URL that :func:`hide_place` was given.

    Raises:
        InputError: The file is gone.
    """
    if not place.startswith(_SCHEME):
        return place
    path = Path(place.removeprefix(_SCHEME))
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The file with the ledger's address cannot be read: {error.strerror}.",
            f"Start the run again: its driver writes {path.name} anew.",
        ) from None


def open_place(place: str, keys_dir: str) -> Ledger:
    """Opens a run's ledger for its coordinator.

    A database that is restarted is waited for, here and in every later call: no
    request is lost, and none is charged twice.

    Raises:
        LedgerUnreachableError: The database did not come back in time.
        PftError: What else :meth:`Ledger.open` raises.
    """
    return Ledger.open(
        read_place(place), keys_dir=Path(keys_dir), patience_s=PATIENCE_S
    )


def forget_place(place: str) -> None:
    """Removes the file of a run that has ended."""
    if place.startswith(_SCHEME):
        Path(place.removeprefix(_SCHEME)).unlink(missing_ok=True)
