"""What the ledger knows about data sets, blocks and runs, as plain values.

These are only ever written by the rules of :mod:`pft_ray.ledger.state`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pft_ray.ledger.owner_blocks import are_apart
from pft_ray.ledger.windows import windows_apart

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.entries import Position
    from pft_ray.ledger.filter_records import FilterBudget, Holding
    from pft_ray.ledger.shares import Part, RhoShare

END_STATUSES = ("completed", "budget_exhausted", "interrupted", "failed")
# No epoch can take a run again that has one of these.
FINAL_STATUSES = (
    *("completed", "budget_exhausted", "released", "settled", "expired", "left"),
)
# Runs with one of these hold no envelope and were never charged.
EMPTY_STATUSES = ("waiting", "left", "released", "expired")


@dataclass(frozen=True)
class Dataset:
    """A registered data set.

    Attributes:
        name: Its name in the ledger.
        public: True when it holds no private data; never changes.
        namespaces: The kinds of unit ids that were fingerprinted.
        commitment: HMAC over its fingerprints under the ledger's key, hex.
        key_check: HMAC of the ledger id under the same key, hex.
        facts: What was declared about it, public.
    """

    name: str
    public: bool
    namespaces: tuple[str, ...]
    commitment: str
    key_check: str
    facts: dict[str, Any]


@dataclass
class Block:
    """A part of a data set with its own budget, and what was taken from it.

    Envelopes are counted in the fields for epsilon and delta; a block of mode
    ``filter`` counts in ``filter``, and these stay 0.
    """

    name: str
    dataset: str
    predicate: dict[str, Any]
    unit: str
    mode: str
    epsilon_units: int
    delta_units: int
    reserved_epsilon_units: int = 0
    reserved_delta_units: int = 0
    used_epsilon_units: int = 0
    used_delta_units: int = 0
    num_reservations: int = 0
    num_non_private: int = 0
    filter: FilterBudget | None = None
    num_arrivals: int = 0  # runs that ever asked for a part of it

    @property
    def remaining_epsilon_units(self) -> int:
        """Epsilon that no run has reserved."""
        return self.epsilon_units - self.reserved_epsilon_units

    @property
    def remaining_delta_units(self) -> int:
        """Delta that no run has reserved."""
        return self.delta_units - self.reserved_delta_units

    def is_disjoint_from(self, other: Block) -> bool:
        """Whether the public predicates prove that no unit is in both blocks.

        Known to be disjoint are, within one hash split of one registration and one
        unit, its two roles, the owners that one rule tells apart and, when the unit is
        the record, windows of one column that do not overlap. Whatever else is cut
        from it overlaps, and so do blocks of different registrations: their ids may
        come from different namespaces. What is not disjoint is summed.
        """
        mine, theirs = dict(self.predicate), dict(other.predicate)
        roles = mine.pop("role", None), theirs.pop("role", None)
        owners = mine.pop("owner", None), theirs.pop("owner", None)
        windows = mine.pop("window", None), theirs.pop("window", None)
        if (
            self.dataset != other.dataset
            or mine != theirs
            or mine.get("kind") != "hash-split"
            or self.unit != other.unit
        ):
            return False
        if set(roles) == {"train", "validation"}:
            return True
        if self.unit == "record" and windows_apart(*windows):
            return True
        return roles[0] == roles[1] and are_apart(*owners)


@dataclass
class Attempt:
    """A sequence of steps under one key.

    Attributes:
        number: From 1; allocated by the ledger.
        start: First step it may run.
        next_step: First step that no grant of it covers.
        grants: nonce to (start, stop, sequence) while it is open; empty after.
    """

    number: int
    start: int
    next_step: int
    grants: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A registered checkpoint of a run."""

    attempt: int
    step: int
    name: str


@dataclass(frozen=True)
class Look:
    """A charged look at a validation block; ``position`` says when it was."""

    position: str
    block: str
    epoch: int


@dataclass
class Run:
    """A reserved or waiting run and everything that was charged to it.

    ``status`` is ``waiting`` in the queue (``left`` when it gave up), ``reserved``,
    ``running``, one of the end statuses, ``released`` when the reservation was given
    back whole, ``settled`` when a filter run gave back what it was not charged, or
    ``expired`` when its time limit passed. ``reservation`` is that of nothing (0) while
    it waits. A ``time_limit_ms`` of 0 is none. A plan run has envelopes, a filter run
    shares, and holdings of them once they are reserved. ``group`` names all runs that
    were declared together and share their envelopes.
    """

    run_id: str
    name: str
    plan: Plan
    plan_digest: str
    envelopes: tuple[Envelope, ...]
    reservation: Position
    reservation_sequence: int
    phase_ends: tuple[int, ...]
    num_steps: int
    num_steps_max: int
    status: str = "reserved"
    time_limit_ms: int = 0
    epoch: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    has_open_attempt: bool = False
    num_steps_charged: int = 0
    num_steps_released: int = 0
    looks: list[Look] = field(default_factory=list)
    released: dict[int, dict[str, Any]] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    shares: tuple[RhoShare, ...] = ()
    holdings: list[Holding] = field(default_factory=list)
    group: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it reserved, or waits for: envelopes, or shares of filter blocks."""
        return (*self.envelopes, *self.shares)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks that it reserved on, one a part."""
        return tuple(part.block for part in self.parts)

    @property
    def open_attempt(self) -> Attempt | None:
        """The attempt that may be granted steps, if any."""
        return self.attempts[-1] if self.has_open_attempt else None

    @property
    def is_final(self) -> bool:
        """Whether nothing can be charged to it any more."""
        return self.status in FINAL_STATUSES

    @property
    def is_charged(self) -> bool:
        """Whether its envelopes are used: a step or a look was charged."""
        return self.num_steps_charged > 0 or bool(self.looks)

    @property
    def holds_envelopes(self) -> bool:
        """Whether its envelopes are taken out of their blocks."""
        return self.status not in EMPTY_STATUSES

    @property
    def evaluation_block(self) -> str | None:
        """The block that pays for looks, if the run has one."""
        for part in self.parts:
            if part.role == "evaluation":
                return part.block
        return None

    def close_attempt(self) -> None:
        """Ends the open attempt: its key is gone, its nonces are of no more use."""
        if self.has_open_attempt:
            self.attempts[-1].grants.clear()
            self.has_open_attempt = False
