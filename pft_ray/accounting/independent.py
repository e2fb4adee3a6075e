"""Workers that touch the same units independently, and what that wastes.

n workers that each draw from all units under keys of their own, each with the whole
noise, make n events a step. One mechanism for all of them draws as many units and has
one noise: it is what the price is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.accounting.events import Event, PoissonGaussian, Repeat, check_count, store
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan


def check_independent(plan: Plan) -> None:
    """Refuses a plan whose independent workers do not have a noise each.

    Raises:
        PlanError: They have not as many shares as they are, or they come with users,
            owners or a clip norm that moves.
    """
    many = check_count(plan.independent_workers, "independent_workers")
    store(plan, independent_workers=many)
    if many == 1:
        return
    moves = any(phase.quantile is not None for phase in plan.phases)
    if plan.user is not None or plan.owners is not None or moves:
        raise PlanError(
            "Independent workers with users, owners or a clip norm that moves.",
            "Use one mechanism for all workers.",
        )
    if plan.num_shares != many:
        raise PlanError(
            f"{many} independent workers have {plan.num_shares} noise shares.",
            "Each has one, with the whole noise of its own release.",
        )


def independent_event(plan: Plan) -> Event:
    """Returns what one step does: one event, or one for each independent worker."""
    step = PoissonGaussian(plan.sample_rate, plan.noise_multiplier)
    many = plan.independent_workers
    return step if many == 1 else Repeat(step, many)


@dataclass(frozen=True)
class IndependentPrice:
    """Noise of a step of independent workers, and of one mechanism in their place.

    Attributes:
        num_events: Events that are charged: workers times T_max.
        noise_multiplier: Of each worker.
        central_noise_multiplier: Of one mechanism with the same epsilon, steps and
            expected units a step.
        extra_noise: Noise of the sum over that of the one mechanism, less 1.
    """

    num_events: int
    noise_multiplier: float
    central_noise_multiplier: float
    extra_noise: float


def price_independent(plan: Plan) -> IndependentPrice:
    """Returns what independent workers cost against one mechanism for all.

    The sum of n releases has noise sigma sqrt(n); both sums have the same expected
    number of units, as far as rates stay below 1.
    """
    many = plan.independent_workers
    central = calibrate_noise_multiplier(
        target_epsilon=epsilon(plan.event, plan.delta),
        delta=plan.delta,
        sample_rate=min(1.0, plan.sample_rate * many),
        num_steps=plan.num_steps_max,
    )
    return IndependentPrice(
        many * plan.num_steps_max,
        plan.noise_multiplier,
        central,
        plan.noise_multiplier * math.sqrt(many) / central - 1,
    )
