"""Verification: the whole ledger walked from its raw rows, and epsilon from events.

Nothing the ledger object remembers is trusted: the store is opened a second time, for
reading only.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.errors import (
    LedgerError,
    LedgerStorageError,
    VerificationError,
)
from pft_ray.ledger.anchor import check_anchor
from pft_ray.ledger.entries import bad_row
from pft_ray.ledger.observers import BudgetEvent
from pft_ray.ledger.opening import ledger_source, open_for_reading
from pft_ray.ledger.reader import LedgerReader
from pft_ray.ledger.registration import packed_commitment, require_key
from pft_ray.ledger.run_checks import RunCheck, check_runs
from pft_ray.ledger.schema import check_schema
from pft_ray.ledger.state import LedgerState, replay_row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pft_ray.ledger.anchor import Anchor
    from pft_ray.ledger.observers import Observers
    from pft_ray.ledger.run_checks import PriceFunction
    from pft_ray.ledger.store import Source, Store

_TIMEOUT_S = 10.0
UNPROVEN = "valid prefix, completeness not proven"


@dataclass(frozen=True)
class Verification:
    """What was verified.

    ``words`` says how far completeness is proven: without any position from outside
    the ledger, a lost tail cannot be seen.
    """

    ledger_id: str
    num_entries: int
    root: str
    num_reservations: int
    runs: tuple[RunCheck, ...]
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        return asdict(self)


def verify(
    ledger: LedgerReader | str | Path,
    anchors: Iterable[Anchor] = (),
    *,
    epsilon: PriceFunction | None = None,
    fingerprint_key: bytes | None = None,
    observers: Observers | None = None,
) -> Verification:
    """Verifies a ledger: structure, hash chain, every transition, every price.

    Args:
        ledger: An open ledger, a path or a URL.
        anchors: Positions seen outside the ledger.
        epsilon: Prices (event, delta); default: the PLD accountant.
        fingerprint_key: With it, the fingerprints are checked against the
            commitments.
        observers: Who is told the outcome; default: those of an open ledger.

    Raises:
        LedgerBehindError: The ledger lacks an anchor's position.
        VerificationError: Anything else is wrong; the first bad row, or the page that
            SQLite names, is in the message.
        LedgerError: The file is no ledger, or a newer version wrote it.
    """
    if isinstance(ledger, LedgerReader):
        source, observers = ledger.source, observers or ledger.observers
    else:
        source = ledger_source(ledger)
    try:
        found = _verify(source, list(anchors), epsilon, fingerprint_key)
    except VerificationError as error:
        if observers is not None:
            fields = {"code": error.code, **error.details}
            observers.tell([BudgetEvent("verification_failed", fields)])
        raise
    if observers is not None:
        fields = {"root": found.root, "words": found.words}
        observers.tell([BudgetEvent("verified", fields, found.num_entries)])
    return found


def _verify(
    source: Source,
    anchors: list[Anchor],
    epsilon: PriceFunction | None,
    fingerprint_key: bytes | None,
) -> Verification:
    with closing(open_for_reading(source, _TIMEOUT_S)) as store:
        # One transaction: all that is read belongs to one moment of the ledger.
        store.begin_reading()
        state, roots = _read(store, {anchor.sequence for anchor in anchors})
        _check_fingerprints(store, state, fingerprint_key)
    for anchor in anchors:
        if anchor.counts == "reservations":
            root = state.reservation_root(anchor.sequence)
            check_anchor(anchor, state.ledger_id, state.num_reservations, root)
        else:
            root = roots.get(anchor.sequence)
            check_anchor(anchor, state.ledger_id, state.sequence, root)
    return Verification(
        ledger_id=state.ledger_id,
        num_entries=state.sequence,
        root=state.root,
        num_reservations=state.num_reservations,
        runs=check_runs(state, epsilon),
        words=_words(anchors),
    )


def _words(anchors: list[Anchor]) -> str:
    """Says how far completeness is proven: a row says more than a reservation."""
    if not anchors:
        return UNPROVEN
    last = max(
        anchors, key=lambda anchor: (anchor.counts == "entries", anchor.sequence)
    )
    what = "row" if last.counts == "entries" else "reservation"
    return f"valid, and complete up to {what} {last.sequence} ({last.source})"


def _read(store: Store, wanted: set[int]) -> tuple[LedgerState, dict[int, str]]:
    """Checks structure, schema and rows; returns the state and the roots wanted."""
    found = store.find_damage()
    if found is not None and found.details["page"] is not None:
        raise found
    ledger_id = _checked_id(store)
    state, roots = _walk(store, wanted)
    if found is not None:
        row = store.first_row_of_another_type()
        raise found if row is None else bad_row(row, "holds a value that is no text")
    if state.ledger_id != ledger_id:
        raise VerificationError(
            "The ledger's meta table names another ledger than its first row.",
            "Restore the ledger from a copy that verifies.",
            {"row": "meta"},
        )
    return state, roots


def _checked_id(store: Store) -> str:
    """Checks that the file is a ledger of this schema; returns the id it names."""
    try:
        return check_schema(store)
    except LedgerError as error:
        if "schema" in error.details or isinstance(error, LedgerStorageError):
            raise
        raise VerificationError(
            f"{error.message} Its schema (page 1) is of something else.",
            "Give the ledger's path, or restore it from a copy that verifies.",
            {"page": 1},
        ) from error


def _walk(store: Store, wanted: set[int]) -> tuple[LedgerState, dict[int, str]]:
    """Replays every row; returns the state and the roots at the places wanted."""
    state = LedgerState()
    roots: dict[int, str] = {}
    try:
        with closing(store.rows_from(0)) as rows:
            for row in rows:
                entry = replay_row(state, row)
                if entry.sequence in wanted:
                    roots[entry.sequence] = entry.hash
    except VerificationError as error:
        if "row" in error.details:
            raise
        raise bad_row(state.sequence + 1, f"cannot be read: {error.message}") from error
    if not state.sequence:
        raise VerificationError(
            "Ledger row 1 is missing: the ledger is empty.",
            "Restore the ledger from a copy that verifies.",
            {"row": 1},
        )
    return state, roots


def _check_fingerprints(store: Store, state: LedgerState, key: bytes | None) -> None:
    expected = {
        (dataset.name, namespace)
        for dataset in state.datasets.values()
        for namespace in dataset.namespaces
    }
    if set(store.fingerprinted()) != expected:
        raise VerificationError(
            "The ledger's fingerprints are not those of its registrations.",
            "Restore the ledger from a copy that verifies.",
        )
    if key is None:
        return
    require_key(key, state.ledger_id, state.key_check)
    for dataset in state.datasets.values():
        packed = {
            namespace: b"".join(store.digests(dataset.name, namespace))
            for namespace in dataset.namespaces
        }
        if packed_commitment(key, packed) != dataset.commitment:
            raise VerificationError(
                f"The fingerprints of data set {dataset.name!r} were changed.",
                "Restore the ledger from a copy that verifies.",
                {"dataset": dataset.name},
            )
