"""Two-sided tests of a noise scale, with a stated false-positive rate.

A test of noise that only refuses too little accepts a broken mechanism that draws too
much, and one that only looks at a mean accepts no noise at all. The helpers here are
to be called three times: with the true scale (accepted) and with 0.7 and 1.3 times of
it (refused).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FALSE_POSITIVE_RATE = 1e-9
# Enough draws that 0.7 and 1.3 times the scale are refused with certainty.
ENOUGH = 5_000


def is_normal_of_scale(samples: ArrayLike, scale: float) -> bool:
    """Says whether samples can be independent N(0, scale^2); wrong 1 time in 1e9.

    The sum of squares over scale^2 is chi-square and the mean normal. Both tails of
    both are refused, each at a quarter of the false-positive rate.
    """
    values = np.asarray(samples, dtype=np.float64).ravel()
    assert values.size >= ENOUGH, "too few samples to tell 0.7 or 1.3 times the scale"
    tail = FALSE_POSITIVE_RATE / 4
    statistic = float((values**2).sum()) / scale**2
    low, high = stats.chi2.ppf(tail, values.size), stats.chi2.isf(tail, values.size)
    centred = abs(values.mean()) * np.sqrt(values.size) <= scale * stats.norm.isf(tail)
    return bool(low <= statistic <= high and centred)


def is_binomial(count: int, trials: int, rate: float) -> bool:
    """Says whether a count can be Binomial(trials, rate); wrong 1 time in 1e9."""
    tail = FALSE_POSITIVE_RATE / 2
    low, high = stats.binom.ppf(tail, trials, rate), stats.binom.isf(tail, trials, rate)
    return bool(low <= count <= high)
