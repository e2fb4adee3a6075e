"""Noise for a run that is priced at one Renyi order, as filter blocks are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pft_ray.accounting.calibration import renyi_scale, round_up
from pft_ray.accounting.events import Event, Repeat, check_positive
from pft_ray.accounting.filters import (
    best_order,
    budget_units,
    epsilon_of_units,
    rho_units,
)
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.accounting.plan import Plan

_LARGEST_SCALE = 1e9
_MAX_POINTS = 20


def order_for_target(
    make_event: Callable[[float], Event], target_epsilon: float, delta: float
) -> int:
    """Returns the order at which the least noise meets the target.

    Args:
        make_event: Event by noise scale; more noise never costs more.
        target_epsilon: What the event may cost.
        delta: At this delta.
    """
    target = check_positive(target_epsilon, "epsilon")
    return best_order(make_event(renyi_scale(make_event, target, delta)), delta)


def scale_at_order(
    make_event: Callable[[float], Event],
    target_epsilon: float,
    delta: float,
    order: int,
) -> float:
    """Returns the least scale, rounded up, whose event fits the target at ``order``.

    Guarantee:
        ``rho_units`` of the event at the scale returned is at most ``budget_units``
        of (target_epsilon, delta) at the order, in exact integers.

    Raises:
        PlanError: The order cannot serve so small an epsilon.
    """
    budget = budget_units(target_epsilon, delta, order)

    def fits(scale: float) -> bool:
        try:
            return rho_units(make_event(scale), order) <= budget
        except PlanError:  # too little noise for any price
            return False

    low, high = 1e-3, 1e-3
    while not fits(high):
        low, high = high, 2 * high
        if high > _LARGEST_SCALE:
            raise PlanError(
                f"No noise reaches epsilon {target_epsilon:g} at order {order}.",
                "Give more epsilon or delta, a larger order, or a noise multiplier.",
            )
    while high > low * (1 + 1e-7):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    scale = round_up(high)
    while not fits(scale):
        scale = round_up(scale * (1 + 1e-5))
    return scale


def epsilon_at_order(event: Event, delta: float, order: int) -> float:
    """Returns epsilon of an event that is reserved whole at one order."""
    return epsilon_of_units(rho_units(event, order), delta, order)


def curve_at_order(plan: Plan, order: int) -> list[tuple[int, float]]:
    """Returns at most 20 rising (steps, epsilon at the order) pairs, the last at T_max.

    For information: what a run is stated at is always the last value.
    """
    total = plan.num_steps_max
    points = min(_MAX_POINTS, total)
    steps = sorted({-(-total * index // points) for index in range(1, points + 1)})
    return [
        (n, epsilon_at_order(Repeat(plan.step_event, n), plan.delta, order))
        for n in steps
    ]
