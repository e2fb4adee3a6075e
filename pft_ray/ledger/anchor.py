"""Anchors: positions kept outside the ledger, so that a lost tail is seen.

A chain whose last rows were cut off is a valid chain. Whoever holds a later position
(a checkpoint, a report, the anchor file) can tell. The anchor file lies with the
runs, never beside the ledger, and keeps the highest position it was given.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pft_ray.accounting.plan import canonical_json
from pft_ray.crypto import new_token
from pft_ray.errors import LedgerBehindError, LedgerStorageError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pft_ray.ledger.entries import Position

_VERSION = 1


@dataclass(frozen=True)
class Anchor:
    """A position that someone outside the ledger saw.

    Attributes:
        ledger_id: The ledger it belongs to, hex; None when the source does not say.
        sequence: Its place.
        root: The hash there, hex.
        source: Where it was found, for messages.
        counts: What ``sequence`` counts: all entries, or reservations only, as in a
            released report, which must not tell the number of grants.
    """

    ledger_id: str | None
    sequence: int
    root: str
    source: str
    counts: Literal["entries", "reservations"] = "entries"


def check_anchor(anchor: Anchor, ledger_id: str, last: int, root: str | None) -> None:
    """Checks one anchor against a chain.

    Args:
        anchor: The anchor.
        ledger_id: The chain's ledger.
        last: The chain's length, in what the anchor counts.
        root: The chain's hash at the anchor's sequence, None where it has none.

    Raises:
        LedgerBehindError: The chain ends before the anchor.
        VerificationError: Another ledger, or another history at that place.
    """
    details = {"source": anchor.source, "sequence": anchor.sequence}
    what = "reservation" if anchor.counts == "reservations" else "row"
    if anchor.ledger_id not in (None, ledger_id):
        raise VerificationError(
            f"{anchor.source} belongs to ledger {anchor.ledger_id}, this is "
            f"{ledger_id}.",
            "Use the ledger that the runs were started with, or another runs folder.",
            details,
        )
    if anchor.sequence > last:
        raise LedgerBehindError(
            f"The ledger ends at {what} {last}; {anchor.source} saw {what} "
            f"{anchor.sequence}.",
            "Rows were lost or an old copy was restored: bring the newest copy back.",
            details,
        )
    if anchor.root != root:
        raise VerificationError(
            f"The ledger has another history at {what} {anchor.sequence} than "
            f"{anchor.source} saw.",
            "It was rewritten or forked: restore the copy that the anchor belongs to.",
            details,
        )


def read_anchors(path: Path) -> tuple[Anchor, ...]:
    """Returns what an anchor file holds: one anchor, none when there is no file.

    Raises:
        VerificationError: The file is not an anchor file.
    """
    known = _read(path)
    return () if known is None else (known,)


def _read(path: Path) -> Anchor | None:
    try:
        data: Any = json.loads(path.read_bytes())
        if data["version"] != _VERSION:
            raise ValueError
        return Anchor(
            ledger_id=str(data["ledger_id"]),
            sequence=int(data["sequence"]),
            root=str(data["root"]),
            source=f"anchor file {path.name}",
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        raise VerificationError(
            f"The anchor file {path} cannot be read.",
            "Restore it; without it a shortened ledger is not noticed.",
        ) from None


def write_anchor(
    path: Path, ledger_id: str, position: Position, *, durable: bool = True
) -> bool:
    """Raises the anchor to ``position``, atomically and durably.

    Without ``durable`` the write is atomic but not synced: after a loss of power the
    file may hold an earlier position, which proves less and is never wrong.

    Returns:
        False when the file holds that position or a later one already.

    Raises:
        VerificationError: The file belongs to another ledger, or holds the same place
            with another hash.
        LedgerStorageError: The file cannot be written.
    """
    try:
        with _exclusive(path):
            there = _read(path)
            if there is not None:
                if there.ledger_id != ledger_id or there.sequence == position.sequence:
                    check_anchor(there, ledger_id, position.sequence, position.root)
                if there.sequence >= position.sequence:
                    return False
            _replace(
                path,
                {
                    "version": _VERSION,
                    "ledger_id": ledger_id,
                    "sequence": position.sequence,
                    "root": position.root,
                },
                durable=durable,
            )
    except OSError as error:
        raise LedgerStorageError(
            f"The anchor file {path.name} cannot be written: {error.strerror}.",
            "Check free space and permissions of the runs folder.",
        ) from error
    return True


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lets one process at a time read, compare and replace the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: dict[str, Any], *, durable: bool) -> None:
    draft = path.with_name(f".{path.name}.{new_token().hex()}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(canonical_json(content))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
