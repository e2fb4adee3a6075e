"""Verification: the whole ledger walked from its raw rows, and epsilon from events.

Nothing the ledger object remembers is trusted: the store is opened a second time, for
reading only.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pft_ray.errors import (
    LedgerError,
    LedgerStorageError,
    VerificationError,
)
from pft_ray.ledger.anchor import check_anchor
from pft_ray.ledger.budget import envelope_epsilon_units
from pft_ray.ledger.entries import bad_row
from pft_ray.ledger.opening import ledger_source, open_for_reading
from pft_ray.ledger.reader import LedgerReader
from pft_ray.ledger.registration import packed_commitment, require_key
from pft_ray.ledger.schema import check_schema
from pft_ray.ledger.state import LedgerState, replay_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pft_ray.accounting.events import Event
    from pft_ray.ledger.anchor import Anchor
    from pft_ray.ledger.records import Run
    from pft_ray.ledger.store import Store

    PriceFunction = Callable[[Event, float], float]

# Epsilon is re-derived in floating point, perhaps on another machine.
_SLACK_UNITS = 100
_TIMEOUT_S = 10.0
UNPROVEN = "valid prefix, completeness not proven"


@dataclass(frozen=True)
class EnvelopeCheck:
    """An envelope and the epsilon that its events give when computed anew."""

    block: str
    purpose: str
    epsilon: float
    envelope: float
    delta: float


@dataclass(frozen=True)
class RunCheck:
    """A verified run.

    ``epsilon`` is the run's, computed anew: the largest over its envelopes when their
    blocks are disjoint, else the sum. ``envelope`` is the same of what was reserved,
    ``delta`` of its deltas. ``stated`` is what a report of the run has to say of its
    plan.
    """

    run_id: str
    status: str
    num_steps_charged: int
    num_steps_max: int
    epsilon: float
    envelope: float
    delta: float
    envelopes: tuple[EnvelopeCheck, ...]
    stated: dict[str, Any]


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
) -> Verification:
    """Verifies a ledger: structure, hash chain, every transition, every price.

    Args:
        ledger: An open ledger, a path or a URL.
        anchors: Positions seen outside the ledger.
        epsilon: Prices (event, delta); default: the PLD accountant.
        fingerprint_key: With it, the fingerprints are checked against the
            commitments.

    Raises:
        LedgerBehindError: The ledger lacks an anchor's position.
        VerificationError: Anything else is wrong; the first bad row, or the page that
            SQLite names, is in the message.
        LedgerError: The file is no ledger, or a newer version wrote it.
    """
    if isinstance(ledger, LedgerReader):
        source = ledger.source
    else:
        source = ledger_source(ledger)
    anchors = list(anchors)
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
        runs=_check_runs(state, epsilon or _pld),
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


def _check_runs(state: LedgerState, epsilon: PriceFunction) -> tuple[RunCheck, ...]:
    price = cache(epsilon)
    return tuple(
        _check_run(state, run, price)
        for run in state.runs.values()
        if run.holds_envelopes
    )


def _check_run(state: LedgerState, run: Run, price: PriceFunction) -> RunCheck:
    """Prices the events of a run's envelopes anew, from the ledger alone."""
    checks = []
    for envelope in run.envelopes:
        found = price(envelope.event, envelope.delta)
        limit = envelope.epsilon_units + _SLACK_UNITS
        if not found < float("inf") or envelope_epsilon_units(found) > limit:
            raise VerificationError(
                f"Ledger row {run.reservation.sequence}: the events of run "
                f"{run.run_id!r} cost epsilon {found:.6g}, its {envelope.purpose} "
                f"envelope holds {envelope.epsilon:.6g}.",
                "Its guarantee is the larger number.",
                {"row": run.reservation.sequence, "run_id": run.run_id},
            )
        checks.append(
            EnvelopeCheck(
                block=envelope.block,
                purpose=envelope.purpose,
                epsilon=found,
                envelope=envelope.epsilon,
                delta=envelope.delta,
            )
        )
    blocks = [state.blocks[envelope.block] for envelope in run.envelopes]
    disjoint = all(a.is_disjoint_from(b) for a, b in combinations(blocks, 2))
    together = max if disjoint else sum
    return RunCheck(
        run_id=run.run_id,
        status=run.status,
        num_steps_charged=run.num_steps_charged,
        num_steps_max=run.num_steps_max,
        epsilon=together(check.epsilon for check in checks),
        envelope=together(check.envelope for check in checks),
        delta=together(check.delta for check in checks),
        envelopes=tuple(checks),
        stated=_stated(run),
    )


def _stated(run: Run) -> dict[str, Any]:
    """Returns the fields of a report that the run's plan decides."""
    plan = run.plan
    return {
        "unit": plan.unit,
        **({} if plan.user is None else {"user": asdict(plan.user)}),
        "relation_domain": plan.relation_domain,
        "target_epsilon": plan.target_epsilon,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "num_steps_planned": plan.num_steps,
        "num_steps_max": plan.num_steps_max,
        "plan_digest": run.plan_digest,
    }


def _pld(event: Event, delta: float) -> float:
    from pft_ray.accounting.accountants import epsilon

    return epsilon(event, delta, accountant="pld")
