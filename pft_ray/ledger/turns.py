"""The state of a ledger as the admission order sees it, and whose turn it is."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from pft_ray.errors import MustWaitError
from pft_ray.ledger.admission import Job, Missing, Supply, ahead, missing
from pft_ray.ledger.budget import delta_value, epsilon_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.records import Block
    from pft_ray.ledger.state import LedgerState


class Amount(NamedTuple):
    """One part of a block's budget, in its own units.

    Attributes:
        name: What it is, for display.
        whole: All of it.
        held: What runs reserved and did not give back.
        used: What charges used, for good.
        value: Turns units into the number that is shown.
    """

    name: str
    whole: int
    held: int
    used: int
    value: Callable[[int], float]


def amounts_of(block: Block) -> tuple[Amount, ...]:
    """Returns the parts of a block's budget."""
    epsilon = Amount(
        "epsilon",
        block.epsilon_units,
        block.reserved_epsilon_units,
        block.used_epsilon_units,
        epsilon_value,
    )
    delta = Amount(
        "delta",
        block.delta_units,
        block.reserved_delta_units,
        block.used_delta_units,
        delta_value,
    )
    return epsilon, delta


def parts_of(envelope: Envelope, block: Block) -> tuple[Fraction, ...]:
    """Returns an envelope's parts of the block's whole, one for each amount."""
    asked = (envelope.epsilon_units, envelope.delta_units)
    return tuple(
        Fraction(units, amount.whole)
        for units, amount in zip(asked, amounts_of(block), strict=True)
    )


def supply_of(block: Block) -> Supply:
    """Returns what no run holds, and what no charge has used, of the block."""
    amounts = amounts_of(block)
    return Supply(
        left=tuple(Fraction(a.whole - a.held, a.whole) for a in amounts),
        unused=tuple(Fraction(a.whole - a.used, a.whole) for a in amounts),
        num_arrivals=block.num_arrivals,
    )


def job_of(state: LedgerState, run_id: str, envelopes: Iterable[Envelope]) -> Job:
    """Returns a run's demand: envelopes on one block are added up."""
    demand: dict[str, tuple[Fraction, ...]] = {}
    for envelope in envelopes:
        parts = parts_of(envelope, state.block(envelope.block))
        known = demand.get(envelope.block)
        if known is not None:
            parts = tuple(a + b for a, b in zip(known, parts, strict=True))
        demand[envelope.block] = parts
    return Job(run_id, demand)


def supplies_for(state: LedgerState, jobs: Iterable[Job]) -> dict[str, Supply]:
    """Returns what there is of every block that one of the jobs demands."""
    names = {name for job in jobs for name in job.demand}
    return {name: supply_of(state.blocks[name]) for name in names}


def check_turn(state: LedgerState, run_id: str) -> None:
    """Checks that a waiting run may be admitted now, by the ledger's order.

    Raises:
        MustWaitError: Others go first, or what it asks for is not unlocked yet.
    """
    _check_turn(state, state.waiting[run_id], supplies_for(state, _waiting(state)))


def check_arrival(
    state: LedgerState, run_id: str, envelopes: Sequence[Envelope]
) -> None:
    """Checks that a run that arrives now would be the next to be admitted.

    Raises:
        MustWaitError: It would overtake a waiting run, or what it asks for is not
            unlocked yet.
    """
    job = job_of(state, run_id, envelopes)
    supplies = supplies_for(state, [*_waiting(state), job])
    for name in job.demand:
        supply = supplies[name]
        supplies[name] = supply._replace(num_arrivals=supply.num_arrivals + 1)
    _check_turn(state, job, supplies)


def _waiting(state: LedgerState) -> Iterable[Job]:
    return state.waiting.values()


def _check_turn(state: LedgerState, job: Job, supplies: dict[str, Supply]) -> None:
    found = missing(state.order, job, supplies)
    if found is not None:
        _refuse_locked(state, job, found)
    others = ahead(state.order, job, _waiting(state), supplies)
    if others:
        num_waiting = len(others)
        what = "1 run waits" if num_waiting == 1 else f"{num_waiting} runs wait"
        raise MustWaitError(
            f"{what} for the same blocks and would be overtaken "
            f"(admission order {state.order.kind}).",
            "Join the queue: give --wait. `pft budget queue` shows who waits.",
            {"num_waiting": num_waiting, "run_id": job.name},
        )


def _refuse_locked(state: LedgerState, job: Job, found: Missing) -> None:
    """Refuses what fits the block but not its unlocked part."""
    name = amounts_of(state.blocks[found.block])[found.part].name
    raise MustWaitError(
        f"Block {found.block!r} has too little {name} unlocked: "
        f"{float(found.lacks):.4g} of the whole is missing (admission order "
        f"{state.order.kind}, N {state.order.dpf_n}).",
        "Join the queue with --wait: every run that arrives unlocks more.",
        {
            "num_waiting": len(state.waiting),
            "run_id": job.name,
            "waits_for_block": found.block,
        },
    )
