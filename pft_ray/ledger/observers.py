"""Budget events: who wants to know what the ledger charged, refused or verified.

Events are told after the fact: an entry's events when the entry is durable, a
refusal's when nothing was written. A subscriber that raises is logged by its type and
changes nothing. Event files, and whatever counts what a budget was charged or refused,
are fed from here.

Events are for the operator. The number of charged steps may depend on the data, so
what leaves the house is made from the plan and never from events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pft_ray.errors import BudgetError, BudgetExhausted
from pft_ray.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pft_ray.ledger.entries import Entry
    from pft_ray.ledger.records import Block
    from pft_ray.ledger.state import LedgerState

    Subscriber = Callable[["BudgetEvent"], None]

THRESHOLDS_PERCENT = (50, 80, 95)
# Kinds of entries and the event that tells of each.
_EVENTS = {
    "block": "block_created",
    "filter_block": "block_created",
    "move": "moved",
    "reserve": "reserved",
    "joint_reserve": "reserved",
    "request": "requested",
    "admit": "reserved",
    "leave": "left",
    "expire": "expired",
    "admission": "order_set",
    "release_reservation": "returned",
    "attempt": "attempt_opened",
    "grant": "charged",
    "look": "charged",
    "end": "ended",
}
_FIELDS = (
    *("run_id", "name", "block", "source", "target", "attempt", "start", "stop"),
    *("charged", "look", "reason", "status", "mode", "time_limit_ms", "order"),
)


@dataclass(frozen=True)
class BudgetEvent:
    """Something that happened to a budget.

    Attributes:
        kind: ``block_created``, ``moved``, ``reserved``, ``attempt_opened``,
            ``charged``, ``spent`` (a block passed 50, 80 or 95 per cent), ``ended``,
            ``returned``, ``expired``, ``requested``, ``left``, ``order_set``,
            ``refused``, ``exhausted``, ``verified`` or ``verification_failed``.
        fields: JSON values: run, block, steps, the refusal's code.
        sequence: The ledger's entry that it belongs to; 0 when it wrote none.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the event as JSON."""
        place = {"sequence": self.sequence} if self.sequence else {}
        return {"event": self.kind, **place, **self.fields}


class Observers:
    """The subscribers of one open ledger, told in the order in which they came."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def __bool__(self) -> bool:
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Adds a subscriber; returns the call that takes it away again."""
        self._subscribers.append(subscriber)

        def leave() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return leave

    def tell(self, events: Iterable[BudgetEvent]) -> None:
        """Passes events on. Whatever a subscriber raises ends here."""
        for event in events:
            for subscriber in tuple(self._subscribers):
                try:
                    subscriber(event)
                except Exception as error:  # noqa: BLE001 - it is not the ledger's
                    # Its words may hold anything; its type is enough to find it.
                    get_logger(__name__).warning(
                        "a budget subscriber raised %s", type(error).__name__
                    )


def spent_of(state: LedgerState, entry: Entry) -> dict[str, int]:
    """Returns how many per cent are used of each block that an entry may charge."""
    run = state.runs.get(str(entry.body.get("run_id", "")))
    names = set(run.blocks) if run is not None else set()
    return {name: _percent(state.blocks[name]) for name in sorted(names)}


def events_of(
    entry: Entry, state: LedgerState, before: dict[str, int]
) -> list[BudgetEvent]:
    """Returns what an entry tells, its thresholds included.

    Args:
        entry: An entry that is durable.
        state: The state after it.
        before: :func:`spent_of` the state before it.
    """
    events = []
    kind = _EVENTS.get(entry.kind)
    if kind is not None:
        fields = {name: entry.body[name] for name in _FIELDS if name in entry.body}
        if "envelopes" in entry.body:
            fields["blocks"] = sorted({p["block"] for p in entry.body["envelopes"]})
        if "runs" in entry.body:
            fields["runs"] = [run["run_id"] for run in entry.body["runs"]]
        if entry.kind == "grant":
            run = state.run(entry.body["run_id"])
            fields["num_steps_max"] = run.num_steps_max
        events.append(BudgetEvent(kind, fields, entry.sequence))
    for name, then in before.items():
        now = _percent(state.blocks[name])
        events.extend(
            BudgetEvent("spent", {"block": name, "percent": mark}, entry.sequence)
            for mark in THRESHOLDS_PERCENT
            if then < mark <= now
        )
    return events


def refusal(kind: str, error: BudgetError) -> BudgetEvent:
    """Returns the event of something that the budget refused."""
    name = "exhausted" if isinstance(error, BudgetExhausted) else "refused"
    return BudgetEvent(name, {"what": kind, "code": error.code, **error.details})


def _percent(block: Block) -> int:
    """Returns the part used: of rho, or the larger of epsilon and delta."""
    if block.filter is not None:
        return 100 * block.filter.spent_rho_units // block.filter.rho_units
    return max(
        100 * block.used_epsilon_units // block.epsilon_units,
        100 * block.used_delta_units // block.delta_units,
    )
