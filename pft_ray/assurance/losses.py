"""What a run costs its blocks, as a report states it.

A plan run is stated by PLD, a filter run by its whole reservation at the block's order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.filter_calibration import epsilon_at_order
from pft_ray.assurance.block_prices import block_key, block_prices
from pft_ray.assurance.wording import FILTER_NOTE

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.assurance.block_prices import BlockKey
    from pft_ray.assurance.report import BlockLine, ReportFacts


def is_filter_run(lines: tuple[BlockLine, ...]) -> bool:
    """Whether the run reserved on filter blocks."""
    return any(line.mode == "filter" for line in lines)


def prices_of(facts: ReportFacts) -> dict[BlockKey, tuple[float, float]]:
    """Returns what the plan costs each block: (epsilon, delta).

    By PLD, or at the order of a filter block.
    """
    if is_filter_run(facts.blocks):
        return _filter_prices(facts.plan, facts.blocks)
    return block_prices(facts.plan)


def stated_epsilon(facts: ReportFacts) -> float:
    """Returns the training epsilon that the facts state; NaN when they state none."""
    gate = "rdp" if is_filter_run(facts.blocks) else "pld"
    stated = facts.epsilon_by_accountant.get(gate)
    return math.nan if stated is None else stated


def whole_loss(facts: ReportFacts) -> tuple[float, float]:
    """Returns (epsilon, delta) that hold for every unit in any block of the run."""
    if is_filter_run(facts.blocks):
        return _filter_loss(facts.blocks)
    prices = prices_of(facts)
    epsilons, deltas = [], []
    for line in facts.blocks:
        shared = [
            prices[block_key(other)]
            for other in facts.blocks
            if other is line
            or other.name == line.name
            or other.name in line.overlapping
        ]
        epsilons.append(math.fsum(epsilon for epsilon, _ in shared))
        deltas.append(math.fsum(delta for _, delta in shared))
    return max(epsilons), max(deltas)


def _filter_prices(
    plan: Plan, lines: tuple[BlockLine, ...]
) -> dict[BlockKey, tuple[float, float]]:
    """Returns what the plan costs a block of each role: (epsilon at its order, delta).

    Roles without planned events are left out.
    """
    events = {"training": plan.event}
    if plan.evaluation is not None:
        events["evaluation"] = plan.evaluation.event
    return {
        block_key(line): (
            epsilon_at_order(events[line.role], line.delta, line.order),
            line.delta,
        )
        for line in lines
        if line.role in events and line.order is not None
    }


def _filter_loss(lines: tuple[BlockLine, ...]) -> tuple[float, float]:
    """Returns (epsilon, delta) that hold for every unit in any block of a filter run.

    Guarantee:
        The run's whole reservation on each block, converted at the block's order.
        Blocks that may hold the same unit are summed, others give the maximum; a
        block that pays for training and for looks counts once.
    """
    by_name = {line.name: line for line in lines}
    epsilons, deltas = [], []
    for line in by_name.values():
        shared = [
            other
            for other in by_name.values()
            if other is line or other.name in line.overlapping
        ]
        epsilons.append(math.fsum(other.run_epsilon for other in shared))
        deltas.append(math.fsum(other.run_delta for other in shared))
    return max(epsilons), max(deltas)


def filter_fields(lines: tuple[BlockLine, ...]) -> dict[str, Any]:
    """Returns what a report says of how the run is accounted; nothing by plan."""
    if not is_filter_run(lines):
        return {}
    return {"accounting": "filter", "accounting_note": FILTER_NOTE}


def block_fields(line: BlockLine) -> dict[str, Any]:
    """Returns what a filter block has beside the fields of every block."""
    return {} if line.mode == "plan" else {"mode": line.mode, "order": line.order}
