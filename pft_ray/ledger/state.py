"""The ledger's state: a replay of its entries and nothing else.

:func:`apply` is the only way forward. It checks an entry against the chain and the
rules, then changes the state; an entry that does not fit raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pft_ray.errors import (
    InputError,
    PftError,
    UnknownBlockError,
    UnknownRunError,
    VerificationError,
)
from pft_ray.ledger import (
    block_rules,
    filter_rules,
    joint_rules,
    queue_rules,
    reserve_rules,
    run_rules,
)
from pft_ray.ledger.admission import Job, Order
from pft_ray.ledger.entries import (
    GENESIS_PREVIOUS,
    Body,
    Entry,
    Position,
    bad_row,
    check_fields,
    check_link,
    read_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.ledger.records import Block, Dataset, Run


@dataclass
class LedgerState:
    """Everything that can be known from the entries up to ``sequence``."""

    ledger_id: str = ""
    sequence: int = 0
    root: str = GENESIS_PREVIOUS
    num_reservations: int = 0
    datasets: dict[str, Dataset] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    num_non_private: dict[str, int] = field(default_factory=dict)
    order: Order = field(default_factory=Order)
    waiting: dict[str, Job] = field(default_factory=dict)  # by arrival

    @property
    def position(self) -> Position:
        """The position of the last entry."""
        return Position(self.sequence, self.root)

    @property
    def key_check(self) -> str | None:
        """What the fingerprint key has to answer; None before any registration."""
        for dataset in self.datasets.values():
            return dataset.key_check
        return None

    def reservation_root(self, number: int) -> str | None:
        """Returns the root of reservation ``number``, counted from 1; None beyond."""
        for run in self.runs.values():
            if run.reservation_sequence == number:
                return run.reservation.root
        return None

    def dataset(self, name: str) -> Dataset:
        """Returns the data set named.

        Raises:
            UnknownBlockError: There is none.
        """
        if name not in self.datasets:
            raise UnknownBlockError(
                f"The ledger has no data set {name!r}.",
                "Register it first; `pft budget show` lists those it has.",
                {"dataset": name},
            )
        return self.datasets[name]

    def block(self, name: str) -> Block:
        """Returns the block named.

        Raises:
            UnknownBlockError: There is none.
        """
        if name not in self.blocks:
            raise UnknownBlockError(
                f"The ledger has no block {name!r}.",
                "Create it with `pft budget create`; `pft budget show` lists blocks.",
                {"block": name},
            )
        return self.blocks[name]

    def run(self, run_id: str) -> Run:
        """Returns the run named.

        Raises:
            UnknownRunError: The ledger holds no reservation of that run.
        """
        if run_id not in self.runs:
            raise UnknownRunError(
                f"The ledger holds no reservation of run {run_id!r}.",
                "Use the ledger that the run was started with.",
                {"run_id": run_id},
            )
        return self.runs[run_id]


class _Rule(NamedTuple):
    check: Callable[[LedgerState, Body], None]
    advance: Callable[[LedgerState, Entry], None]


_RULES = {
    "genesis": _Rule(block_rules.check_genesis, block_rules.advance_genesis),
    "dataset": _Rule(block_rules.check_dataset, block_rules.advance_dataset),
    "block": _Rule(block_rules.check_block, block_rules.advance_block),
    "filter_block": _Rule(
        filter_rules.check_filter_block, filter_rules.advance_filter_block
    ),
    "move": _Rule(filter_rules.check_move, filter_rules.advance_move),
    "non_private": _Rule(
        block_rules.check_non_private, block_rules.advance_non_private
    ),
    "reserve": _Rule(reserve_rules.check_reserve, reserve_rules.advance_reserve),
    "joint_reserve": _Rule(
        joint_rules.check_joint_reserve, joint_rules.advance_joint_reserve
    ),
    "release_reservation": _Rule(
        reserve_rules.check_release_reservation,
        reserve_rules.advance_release_reservation,
    ),
    "epoch": _Rule(run_rules.check_epoch, run_rules.advance_epoch),
    "attempt": _Rule(run_rules.check_attempt, run_rules.advance_attempt),
    "grant": _Rule(run_rules.check_grant, run_rules.advance_grant),
    "look": _Rule(run_rules.check_look, run_rules.advance_look),
    "release": _Rule(run_rules.check_release, run_rules.advance_release),
    "checkpoint": _Rule(run_rules.check_checkpoint, run_rules.advance_checkpoint),
    "end": _Rule(run_rules.check_end, run_rules.advance_end),
    "request": _Rule(queue_rules.check_request, queue_rules.advance_request),
    "admit": _Rule(queue_rules.check_admit, queue_rules.advance_admit),
    "leave": _Rule(queue_rules.check_leave, queue_rules.advance_leave),
    "expire": _Rule(queue_rules.check_expire, queue_rules.advance_expire),
    "admission": _Rule(queue_rules.check_admission, queue_rules.advance_admission),
}


def check(state: LedgerState, kind: str, body: Body) -> None:
    """Raises the typed error that says why the entry may not follow; else nothing."""
    check_fields(kind, body)
    if not state.sequence and kind != "genesis":
        raise InputError("The first entry of a ledger has to be its genesis.")
    _RULES[kind].check(state, body)


def advance(state: LedgerState, entry: Entry) -> None:
    """Changes the state by an entry that :func:`check` accepted."""
    _RULES[entry.kind].advance(state, entry)
    state.sequence = entry.sequence
    state.root = entry.hash


def apply(state: LedgerState, entry: Entry) -> None:
    """Checks an entry against the chain and the rules, then changes the state.

    Raises:
        VerificationError: The entry was altered or does not follow the state.
        PftError: The entry breaks a rule. The state is unchanged either way.
    """
    check_link(entry, state.position)
    check(state, entry.kind, entry.body)
    advance(state, entry)


def replay_row(state: LedgerState, row: tuple[Any, ...]) -> Entry:
    """Applies a stored row and returns its entry.

    Raises:
        VerificationError: The row is damaged, out of place or breaks a rule; the
            message names it. The state is unchanged.
    """
    entry = read_entry(row)
    try:
        apply(state, entry)
    except VerificationError:
        raise
    except PftError as error:
        raise bad_row(entry.sequence, f"breaks a rule: {error.message}") from error
    return entry
