"""The choice between time and money: a Pareto front, then one rule on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def front(times: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.intp]:
    """Returns the choices that no other beats in both, by rising time.

    Args:
        times: Time of each choice; infinite ones are never on the front.
        costs: Cost of each choice, shape as ``times``.

    Returns:
        Indices. Along them times rise and costs fall, both strictly. Of two equal
        choices the earlier one is kept.
    """
    order = np.lexsort((costs, times))
    order = order[np.isfinite(times[order])]
    if not len(order):
        return order
    cheapest_so_far = np.minimum.accumulate(costs[order])
    better = np.empty(len(order), dtype=bool)
    better[0] = True
    better[1:] = costs[order][1:] < cheapest_so_far[:-1]
    return order[better]


def cheapest_within(
    times: NDArray[np.float64],
    costs: NDArray[np.float64],
    max_slowdown: float,
    *,
    limit_s: float = math.inf,
    allowance_s: float = 0.0,
) -> int | None:
    """Returns the cheapest choice that is not much slower than the fastest.

    The time may be at most (1 + max_slowdown) times that of the fastest choice plus
    ``allowance_s``, and at most ``limit_s``. When nothing meets the limit, the fastest
    is taken.

    Returns:
        An index, or None when no choice has a finite time.
    """
    on_front = front(times, costs)
    if not len(on_front):
        return None
    bound = (1 + max_slowdown) * times[on_front[0]] + allowance_s
    within = on_front[times[on_front] <= min(bound, limit_s)]
    return int(within[-1] if len(within) else on_front[0])
