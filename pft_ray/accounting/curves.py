"""Epsilon by number of steps, for display, and what the fault reserve costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pft_ray.accounting.accountants import SEARCH_GRID, epsilon
from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.accounting.events import Repeat

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan

MAX_POINTS = 20


@dataclass(frozen=True)
class ReservePrice:
    """Noise multipliers that give a plan's epsilon with and without its reserve.

    Attributes:
        with_reserve: The plan's, for T_max steps.
        without_reserve: What would do for the T planned steps.
    """

    with_reserve: float
    without_reserve: float

    @property
    def extra_noise(self) -> float:
        """Share by which the reserve raises the noise: 0.05 is five per cent."""
        return self.with_reserve / self.without_reserve - 1


def epsilon_curve(plan: Plan) -> list[tuple[int, float]]:
    """Returns at most 20 rising (steps, PLD epsilon) pairs, the last at T_max.

    For information beside a running job: what a run has spent is always the last
    value, because the number of steps it has made may depend on the data.
    """
    total = plan.num_steps_max
    final = epsilon(plan.event, plan.delta)
    points = min(MAX_POINTS, total)
    steps = [-(-total * index // points) for index in range(1, points)]
    curve = [
        (count, min(final, _coarse(plan, count))) for count in steps if count < total
    ]
    return [*curve, (total, final)]


def price_of_reserve(plan: Plan) -> ReservePrice:
    """Returns the plan's noise multiplier beside the one without a fault reserve.

    With owners both are those of the owner whose units lose most.
    """
    sigma, rate = plan.noise_multiplier, plan.sample_rate
    if plan.owners is not None:
        worst = plan.owners.step_event(plan.owners.worst(), sigma)
        sigma, rate = worst.noise_multiplier, worst.sample_rate
    if plan.fault_reserve == 0:
        return ReservePrice(sigma, sigma)
    without = calibrate_noise_multiplier(
        user=plan.user,
        target_epsilon=epsilon(plan.event, plan.delta),
        delta=plan.delta,
        sample_rate=rate,
        num_steps=plan.num_steps * plan.independent_workers,
    )
    return ReservePrice(sigma, min(without, sigma))


def _coarse(plan: Plan, num_steps: int) -> float:
    return epsilon(Repeat(plan.step_event, num_steps), plan.delta, grid=SEARCH_GRID)
