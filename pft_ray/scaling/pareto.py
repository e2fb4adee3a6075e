"""The choice between time and money: a Pareto front, then one rule on it."""

from __future__ import annotations

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


def cheapest(
    times: NDArray[np.float64],
    costs: NDArray[np.float64],
    acceptable: NDArray[np.bool_],
) -> int | None:
    """Returns the cheapest acceptable choice, or the fastest when none is acceptable.

    Among equally cheap ones the fastest is taken, and of equal ones the first.

    Args:
        times: Time of each choice; infinite ones are never taken.
        costs: Cost of each choice, shape as ``times``.
        acceptable: Which choices are fast enough.

    Returns:
        An index, or None when no choice has a finite time.
    """
    on_front = front(np.where(acceptable, times, np.inf), costs)
    if len(on_front):
        return int(on_front[-1])
    on_front = front(times, costs)
    return int(on_front[0]) if len(on_front) else None
