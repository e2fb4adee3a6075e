"""Filter blocks for a job: their order, their budget and how it is divided."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.events import Repeat
from pft_ray.accounting.filters import (
    best_order,
    budget_units,
    epsilon_of_units,
    rho_units,
)
from pft_ray.accounting.renyi import ORDERS
from pft_ray.cluster.specs import split_predicate
from pft_ray.config import build_job
from pft_ray.errors import InputError, PlanError
from pft_ray.ledger import FilterSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.config import BuiltJob
    from pft_ray.ledger import Ledger, RhoShare

_EPSILON_UNIT = Decimal("1e-9")


@dataclass(frozen=True)
class BudgetRequest:
    """What the blocks shall hold.

    Attributes:
        runs: Runs of the job, without ``epsilon``.
        epsilon: Budget of each block, in place of runs.
        delta: Delta of each block; of filter blocks it has to be the job's.
        purposes: Parts of the training block's rho by purpose, filter blocks only;
            default: all for the job's purpose.
    """

    runs: int
    epsilon: float | None = None
    delta: float | None = None
    purposes: Mapping[str, float] = field(default_factory=dict)


def multiple(value: float, count: int) -> float:
    """Returns count * value in decimal, so that ten times 1e-5 is exactly 1e-4."""
    return float(Decimal(repr(value)) * count)


def filter_specs(
    built: BuiltJob, budget: BudgetRequest
) -> tuple[BuiltJob, list[FilterSpec]]:
    """Returns the blocks of a filter job, and the job priced at their orders.

    The order is chosen here, for the workload that is declared: one run of a job that
    asks for an epsilon; all the runs, or as many as the budget holds, of a job that
    gives its noise. An order that the job names is kept.

    Raises:
        InputError: Another delta than the job's.
        PlanError: No order serves the budget.
    """
    built = _at_best_order(built, budget)
    specs = []
    for share in built.shares:
        order, delta = built.orders[share.block], _delta(built, share, budget)
        is_training = share.role == "training"
        purposes = dict(budget.purposes) if is_training else {}
        specs.append(
            FilterSpec(
                name=share.block,
                dataset=built.job.data.registration,
                predicate=split_predicate(
                    built.job, "train" if is_training else "validation"
                ),
                unit=built.job.privacy.unit,
                epsilon=budget.epsilon
                or _epsilon_for(built, share, budget.runs, order, delta),
                delta=delta,
                order=order,
                purposes=purposes or {share.purpose: 1.0},
            )
        )
    return built, specs


def keys_to_set(asked: BuiltJob, built: BuiltJob) -> dict[str, int]:
    """Returns what the job file has to say so that its runs fit the blocks' orders."""
    found = {}
    for name, order in built.orders.items():
        if asked.orders[name] != order:
            is_training = name == built.job.training_block
            key = "order" if is_training else "evaluation_order"
            found[f"privacy.filter.{key}"] = order
    return found


def _at_best_order(built: BuiltJob, budget: BudgetRequest) -> BuiltJob:
    """Prices the job at the order that is best for all that the block shall hold.

    A job that asks for an epsilon keeps the order at which that needs the least noise:
    at another order the same epsilon would mean another noise.
    """
    section = built.job.privacy.filter
    named = section.model_dump(exclude_none=True) if section is not None else {}
    is_one = budget.runs == 1 and budget.epsilon is None
    if is_one or "order" in named or built.job.privacy.noise_multiplier is None:
        return built
    share = built.shares[0]
    order = _best_order(share, _delta(built, share, budget), budget)
    data = built.job.model_dump()
    data["privacy"]["filter"] = named | {"order": order}
    return build_job(type(built.job).model_validate(data), built.base_dir)


def _best_order(share: RhoShare, delta: float, budget: BudgetRequest) -> int:
    if budget.epsilon is None:
        return best_order(Repeat(share.event, budget.runs), delta)

    def runs_held(order: int) -> float:
        worth = budget_units(budget.epsilon or 0.0, delta, order)
        try:
            return worth / rho_units(share.event, order)
        except PlanError:  # no price at this order
            return 0.0

    return max(ORDERS, key=runs_held)


def _delta(built: BuiltJob, share: RhoShare, budget: BudgetRequest) -> float:
    """Returns the block's delta, which is that of every run on it."""
    plan = built.plan
    is_look = share.role == "evaluation" and plan.evaluation is not None
    delta = plan.evaluation.delta if is_look and plan.evaluation else plan.delta
    if budget.delta is not None and budget.delta != delta:
        raise InputError(
            f"--delta is {budget.delta:g}, the job's {share.role} delta is {delta:g}.",
            "All runs on a filter block are stated at its delta: give the same.",
        )
    return delta


def _epsilon_for(
    built: BuiltJob, share: RhoShare, runs: int, order: int, delta: float
) -> float:
    """Returns the least epsilon, in whole units, that holds so many runs."""
    wanted = runs * share.rho_units
    target = built.job.privacy.epsilon
    is_one = runs == 1 and share.role == "training"
    if is_one and target and budget_units(target, delta, order) >= wanted:
        return target
    least = Decimal(repr(epsilon_of_units(wanted, delta, order)))
    epsilon = least.quantize(_EPSILON_UNIT, rounding=ROUND_CEILING)
    while budget_units(float(epsilon), delta, order) < wanted:
        epsilon += _EPSILON_UNIT
    return float(epsilon)


def created_filter(ledger: Ledger, built: BuiltJob, spec: FilterSpec) -> dict[str, Any]:
    """Creates a filter block; returns what there is of it, as JSON."""
    created = ledger.filters.create(spec)
    status = ledger.block_status(spec.name)
    assert status.filter is not None
    free = {p.name: p.remaining_rho_units for p in status.filter.purposes}
    (share,) = [share for share in built.shares if share.block == spec.name]
    return {
        "name": status.name,
        "created": created,
        "mode": "filter",
        "order": status.filter.order,
        "rho": status.filter.rho,
        "epsilon": status.epsilon,
        "delta": status.delta,
        "epsilon_left": status.remaining_epsilon,
        "purposes": free,
        "runs_left": free.get(share.purpose, 0) // share.rho_units,
    }
