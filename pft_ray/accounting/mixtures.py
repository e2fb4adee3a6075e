"""The loss distribution of a user's records that are drawn one by one.

P = sum_j w_j N(j, sigma^2) with the user, Q = N(0, sigma^2) without. The log ratio L(x)
rises with x, so every event of the best test is "x above t": delta at each grid point
is a difference of tails, and the dots are connected as for all other events.
dp-accounting builds the same point by point, a hundred times slower.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pft_ray.accounting.events import PoissonMixture

    _Array = NDArray[np.float64]

_TAIL = 10.0  # standard deviations; beyond them lies less than exp(-50)
_TABLE = 20_000
_HALVINGS = 34


def _log_ratio(leaf: PoissonMixture, x: _Array) -> _Array:
    """Returns ln P/Q at x."""
    import numpy as np

    total = np.full_like(x, -np.inf)
    variance = leaf.noise_multiplier**2
    for j, weight in enumerate(leaf.weights):
        if weight > 0:
            term = math.log(weight) + (j * x - j * j / 2) / variance
            total = np.logaddexp(total, term)
    return total


def _inverse(leaf: PoissonMixture, losses: _Array, low: float, high: float) -> _Array:
    """Returns x with L(x) = loss, by halving; -inf where no x has so small a loss.

    A point that is a little off gives a delta that is too small only by the square of
    the error, since the true one is the best test.
    """
    import numpy as np

    table = np.linspace(low, high, _TABLE)
    place = np.searchsorted(_log_ratio(leaf, table), losses)
    left = table[np.clip(place - 1, 0, _TABLE - 1)]
    right = table[np.clip(place, 0, _TABLE - 1)]
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        below = _log_ratio(leaf, middle) < losses
        left, right = np.where(below, middle, left), np.where(below, right, middle)
    return np.where(losses <= math.log(leaf.weights[0] or 5e-324), -np.inf, right)


def mixture_distribution(leaf: PoissonMixture, grid: float) -> Any:
    """Returns dp-accounting's ``PrivacyLossDistribution`` of one step, pessimistic."""
    import numpy as np
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from scipy.special import ndtr

    sigma, most = leaf.noise_multiplier, leaf.max_records_per_user
    low, high = -_TAIL * sigma, most + _TAIL * sigma
    ends = _log_ratio(leaf, np.array([low, high])) / grid
    points = np.arange(math.floor(ends[0]), math.ceil(ends[1]) + 1, dtype=np.int64)
    losses = points * grid
    edge = _inverse(leaf, losses, low, high)
    above, below = ndtr(-edge / sigma), ndtr(edge / sigma)
    mixed_above, mixed_below = np.zeros_like(edge), np.zeros_like(edge)
    for j, weight in enumerate(leaf.weights):
        mixed_above += weight * ndtr((j - edge) / sigma)
        mixed_below += weight * ndtr((edge - j) / sigma)
    with np.errstate(over="ignore", invalid="ignore"):
        # What overflows is not subtracted: delta is then too large, never too small.
        without, mixed = np.exp(losses) * above, np.exp(-losses) * mixed_below
        without[~np.isfinite(without)] = 0.0
        mixed[~np.isfinite(mixed)] = 0.0
        removed = np.clip(mixed_above - without, 0.0, 1.0)
        added = np.clip(below - mixed, 0.0, 1.0)
    build = pld_pmf.create_pmf_pessimistic_connect_dots
    return PrivacyLossDistribution(
        build(grid, points, _falling(removed)),
        build(grid, -points[::-1], _falling(added[::-1])),
    )


def _falling(deltas: _Array) -> _Array:
    """Raises deltas until none is below a later one, as in exact arithmetic."""
    import numpy as np

    return np.maximum.accumulate(deltas[::-1])[::-1]
