"""Renyi filters: adaptive spending of integer units at one fixed order.

A block in filter mode pays for events whose parameters may depend on what earlier
events released. That is sound at one order fixed beforehand (Feldman and Zrnic
2021, arXiv:2008.11193): as long as the divergences at that order sum to at most the
budget, everything together is (epsilon, delta)-private. Units are integers, so sums
are exact; a cost is rounded up and a budget down.
"""

from __future__ import annotations

import math
from fractions import Fraction

from pft_ray.accounting.events import (
    DiscreteGaussian,
    Event,
    Gaussian,
    Leaf,
    check_count,
    check_positive,
    check_rate,
    count_leaves,
)
from pft_ray.accounting.renyi import ORDERS, conversion, renyi_divergence
from pft_ray.errors import PlanError

UNITS = 1 << 40
# Bounds the relative rounding error of the conversion formula.
_ROUNDING = 1e-12


def rho_units(event: Event, order: int) -> int:
    """Returns the cost of ``event`` in units of 2**-40 at ``order``, rounded up.

    Each plain event is rounded up by itself, so the cost of a repetition is the
    repeated cost, however the repetition is split into charges.

    Raises:
        PlanError: The event is not private, or the order is not an integer >= 2.
    """
    _check_order(order)
    return sum(count * _leaf_units(leaf, order) for leaf, count in count_leaves(event))


def budget_units(epsilon: float, delta: float, order: int) -> int:
    """Returns the units that (epsilon, delta) buys at ``order``, rounded down.

    epsilon - ln(1 - 1/order) + ln(delta * order) / (order - 1), and 0 when that is
    negative: the order cannot serve such a small epsilon.
    """
    _check_order(order)
    check_positive(epsilon, "epsilon")
    check_rate(delta, "delta")
    budget = epsilon - conversion(order, delta)
    return max(0, math.floor((budget - _ROUNDING * (1 + epsilon)) * UNITS))


def epsilon_of_units(units: int, delta: float, order: int) -> float:
    """Returns the epsilon that ``units`` at ``order`` amount to, rounded up."""
    _check_order(order)
    check_rate(delta, "delta")
    value = units / UNITS + conversion(order, delta)
    return max(0.0, value + _ROUNDING * (1 + abs(value)))


def best_order(workload: Event, delta: float) -> int:
    """Returns the order at which a declared workload costs the least epsilon.

    The choice must be made before data is read and never again.
    """
    check_rate(delta, "delta")
    leaves = count_leaves(workload)
    return min(
        ORDERS,
        key=lambda order: renyi_divergence(leaves, order) + conversion(order, delta),
    )


def _leaf_units(leaf: Leaf, order: int) -> int:
    match leaf:
        case Gaussian(noise_multiplier=sigma):
            exact = Fraction(order * UNITS, 2) / Fraction(sigma) / Fraction(sigma)
            return math.ceil(exact)
        case DiscreteGaussian(sigma=sigma, sensitivity=sensitivity):
            ratio = Fraction(sensitivity) / Fraction(sigma)
            return math.ceil(Fraction(order * UNITS, 2) * ratio * ratio)
        case _:
            divergence = renyi_divergence(((leaf, 1),), order)
            if math.isinf(divergence):
                raise PlanError(
                    "A non-private event has no price.",
                    "Run it on data registered as public.",
                )
            return math.ceil(divergence * UNITS)


def _check_order(order: int) -> None:
    if check_count(order, "order") < 2:
        raise PlanError(f"The order is {order}.", "Give an integer of 2 or more.")
