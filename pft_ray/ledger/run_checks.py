"""Each run's price anew: what its events cost, from the ledger's rows alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pft_ray.errors import VerificationError
from pft_ray.ledger.budget import delta_value, envelope_epsilon_units
from pft_ray.ledger.filter_verify import (
    check_filter_blocks,
    check_shares_anew,
    reported_epsilons,
)
from pft_ray.ledger.owner_blocks import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pft_ray.accounting.events import Event
    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.records import Block, Run
    from pft_ray.ledger.state import LedgerState

    PriceFunction = Callable[[Event, float], float]

# Epsilon is re-derived in floating point, perhaps on another machine.
_SLACK_UNITS = 100


@dataclass(frozen=True)
class EnvelopeCheck:
    """An envelope and the epsilon that its events give when computed anew.

    ``owner`` is whose account its block is, when it is one's.
    """

    block: str
    purpose: str
    epsilon: float
    envelope: float
    delta: float
    owner: str | None = None


@dataclass(frozen=True)
class RunCheck:
    """A verified run.

    ``epsilon`` is the run's, computed anew: the largest over its blocks, each with
    those added that may hold the same units. ``envelope`` is the same of what was
    reserved, ``delta`` of its deltas. Of a filter run both are its whole reservation,
    converted at the blocks' orders. ``stated`` is what a report of the run has to say
    of its plan.
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


def check_runs(
    state: LedgerState, epsilon: PriceFunction | None = None
) -> tuple[RunCheck, ...]:
    """Prices all runs of a state anew, except those that were given back.

    Args:
        state: A replayed state.
        epsilon: Prices (event, delta); default: the PLD accountant.

    Raises:
        VerificationError: A run costs more than its envelope; its row is named.
    """
    check_filter_blocks(state)
    price = cache(epsilon or _pld)
    return tuple(
        _check_run(state, run, price)
        for run in state.runs.values()
        if run.holds_envelopes
    )


def _check_run(state: LedgerState, run: Run, price: PriceFunction) -> RunCheck:
    """Prices the events of a run's envelopes anew, from the ledger alone."""
    if run.holdings:
        return _check_filter_run(state, run)
    checks, own = [], []
    parts = run.envelopes
    for envelope in parts:
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
        own.append(price(*_own_event(run, envelope)) if run.group else found)
        checks.append(
            EnvelopeCheck(
                block=envelope.block,
                purpose=envelope.purpose,
                epsilon=found,
                envelope=envelope.epsilon,
                delta=envelope.delta,
                owner=owner_of(state.blocks[envelope.block].predicate),
            )
        )
    blocks = [state.blocks[envelope.block] for envelope in parts]
    shared = [_sharing(block, blocks) for block in blocks]

    def together(values: Iterable[float]) -> float:
        """Returns the most that one unit may lose: its blocks' values together."""
        listed = list(values)
        return max(math.fsum(listed[i] for i in places) for places in shared)

    return RunCheck(
        run_id=run.run_id,
        status=run.status,
        num_steps_charged=run.num_steps_charged,
        num_steps_max=run.num_steps_max,
        epsilon=together(own),
        envelope=together(check.envelope for check in checks),
        delta=together(_own_event(run, e)[1] if run.group else e.delta for e in parts),
        envelopes=tuple(checks),
        stated=_stated(run),
    )


def _sharing(block: Block, blocks: list[Block]) -> list[int]:
    """Returns the places of the blocks that may hold a unit of ``block``; its own too.

    All blocks that hold a unit are among those of any one of them.
    """
    return [
        place
        for place, other in enumerate(blocks)
        if other is block or not block.is_disjoint_from(other)
    ]


def _own_event(run: Run, envelope: Envelope) -> tuple[Event, float]:
    """Returns what a run declared with others does itself, and its own delta."""
    looks = run.plan.evaluation
    if envelope.purpose == "training" or looks is None:
        return run.plan.event, run.plan.delta
    return looks.event, looks.delta


def _check_filter_run(state: LedgerState, run: Run) -> RunCheck:
    """Prices the shares of a filter run anew; it is stated at its whole reservation."""
    checks = check_shares_anew(state, run)
    epsilons = reported_epsilons(state, run)
    blocks = [state.blocks[name] for name in epsilons]
    whole = [
        (
            sum(epsilons[blocks[place].name] for place in _sharing(block, blocks)),
            sum(delta_value(blocks[p].delta_units) for p in _sharing(block, blocks)),
        )
        for block in blocks
    ]
    epsilon, delta = (max(parts) for parts in zip(*whole, strict=True))
    return RunCheck(
        run_id=run.run_id,
        status=run.status,
        num_steps_charged=run.num_steps_charged,
        num_steps_max=run.num_steps_max,
        epsilon=epsilon,
        envelope=epsilon,
        delta=delta,
        envelopes=tuple(EnvelopeCheck(*check) for check in checks),
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
