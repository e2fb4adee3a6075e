"""The state of a ledger as the admission order sees it, and whose turn it is."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from pft_ray.errors import MustWaitError
from pft_ray.ledger.admission import Job, Missing, Supply, ahead, missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.records import Block
    from pft_ray.ledger.state import LedgerState

# What the parts of a share, a supply or a lack stand for.
PARTS = ("epsilon", "delta")


def parts_of(envelope: Envelope, block: Block) -> tuple[Fraction, ...]:
    """Returns an envelope's parts of the block's whole epsilon and delta."""
    return (
        Fraction(envelope.epsilon_units, block.epsilon_units),
        Fraction(envelope.delta_units, block.delta_units),
    )


def share_of(envelope: Envelope, block: Block) -> Fraction:
    """Returns an envelope's share of the block: the larger of its parts."""
    return max(parts_of(envelope, block))


def supply_of(block: Block) -> Supply:
    """Returns what no run holds, and what no charge has used, of the block."""
    return Supply(
        left=(
            Fraction(block.remaining_epsilon_units, block.epsilon_units),
            Fraction(block.remaining_delta_units, block.delta_units),
        ),
        unused=(
            1 - Fraction(block.used_epsilon_units, block.epsilon_units),
            1 - Fraction(block.used_delta_units, block.delta_units),
        ),
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
    raise MustWaitError(
        f"Block {found.block!r} has too little {PARTS[found.part]} unlocked: "
        f"{float(found.lacks):.4g} of the whole is missing (admission order "
        f"{state.order.kind}, N {state.order.dpf_n}).",
        "Join the queue with --wait: every run that arrives unlocks more.",
        {
            "num_waiting": len(state.waiting),
            "run_id": job.name,
            "waits_for_block": found.block,
        },
    )
