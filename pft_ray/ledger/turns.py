"""The state of a ledger as the admission order sees it, and whose turn it is."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from pft_ray.accounting.filters import UNITS
from pft_ray.errors import MustWaitError
from pft_ray.ledger.admission import Job, Missing, Supply, ahead, missing
from pft_ray.ledger.budget import delta_value, epsilon_value
from pft_ray.ledger.share_rules import account_of
from pft_ray.ledger.shares import RhoShare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pft_ray.ledger.shares import Part
    from pft_ray.ledger.state import LedgerState

# Names of blocks are printable: this is in none of them.
_BETWEEN = "\n"


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


def account_key(part: Part) -> str:
    """Returns what a part is demanded from: a block, or one purpose of a filter block.

    Purposes of one block are budgets of their own: who waits for one holds up nobody
    who asks for another.
    """
    if isinstance(part, RhoShare):
        return f"{part.block}{_BETWEEN}{part.purpose}"
    return part.block


def words_of(key: str) -> str:
    """Returns a key of :func:`account_key` for display."""
    return key.replace(_BETWEEN, ", purpose ")


def amounts_of(state: LedgerState, key: str) -> tuple[Amount, ...]:
    """Returns the parts of a block's budget, or of a purpose's."""
    name, _, purpose = key.partition(_BETWEEN)
    block = state.block(name)
    if purpose:
        account = account_of(block, purpose)
        held = account.reserved_rho_units + account.spent_rho_units
        spent = account.spent_rho_units
        return (Amount("rho", account.rho_units, held, spent, _rho),)
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


def _rho(units: int) -> float:
    return units / UNITS


def wholes_of(state: LedgerState, key: str) -> tuple[int, ...]:
    """Returns what parts are measured by: all of the block, in its own units.

    Rho moves between purposes, so theirs is measured by the whole block's.
    """
    block = state.block(key.partition(_BETWEEN)[0])
    if block.filter is not None:
        return (block.filter.rho_units,)
    return block.epsilon_units, block.delta_units


def supply_of(state: LedgerState, key: str) -> Supply:
    """Returns what no run holds, and what no charge has used, in parts of the block."""
    pairs = list(zip(amounts_of(state, key), wholes_of(state, key), strict=True))
    return Supply(
        left=tuple(Fraction(a.whole - a.held, whole) for a, whole in pairs),
        unused=tuple(Fraction(a.whole - a.used, whole) for a, whole in pairs),
        num_arrivals=state.block(key.partition(_BETWEEN)[0]).num_arrivals,
        whole=tuple(Fraction(a.whole, whole) for a, whole in pairs),
    )


def job_of(state: LedgerState, run_id: str, parts: Iterable[Part]) -> Job:
    """Returns a run's demand: what it asks of one budget is added up."""
    demand: dict[str, tuple[Fraction, ...]] = {}
    for part in parts:
        key = account_key(part)
        asked = _asked(part)
        wholes = wholes_of(state, key)
        shares = tuple(Fraction(n, w) for n, w in zip(asked, wholes, strict=True))
        known = demand.get(key)
        if known is not None:
            shares = tuple(a + b for a, b in zip(known, shares, strict=True))
        demand[key] = shares
    return Job(run_id, demand)


def _asked(part: Part) -> tuple[int, ...]:
    if isinstance(part, RhoShare):
        return (part.rho_units,)
    return part.epsilon_units, part.delta_units


def supplies_for(state: LedgerState, jobs: Iterable[Job]) -> dict[str, Supply]:
    """Returns what there is of every budget that one of the jobs demands."""
    keys = {key for job in jobs for key in job.demand}
    return {key: supply_of(state, key) for key in keys}


def check_turn(state: LedgerState, run_id: str) -> None:
    """Checks that a waiting run may be admitted now, by the ledger's order.

    Raises:
        MustWaitError: Others go first, or what it asks for is not unlocked yet.
    """
    _check_turn(state, state.waiting[run_id], supplies_for(state, _waiting(state)))


def check_arrival(state: LedgerState, run_id: str, parts: Sequence[Part]) -> None:
    """Checks that a run that arrives now would be the next to be admitted.

    Raises:
        MustWaitError: It would overtake a waiting run, or what it asks for is not
            unlocked yet.
    """
    job = job_of(state, run_id, parts)
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
    name = amounts_of(state, found.block)[found.part].name
    raise MustWaitError(
        f"Block {words_of(found.block)!r} has too little {name} unlocked: "
        f"{float(found.lacks):.4g} of the whole is missing (admission order "
        f"{state.order.kind}, N {state.order.dpf_n}).",
        "Join the queue with --wait: every run that arrives unlocks more.",
        {
            "num_waiting": len(state.waiting),
            "run_id": job.name,
            "waits_for_block": words_of(found.block),
        },
    )
