"""The discrete Gaussian sampler against its exact probabilities.

False-positive rate of each assertion: 1e-9 (keys are fixed, so a pass is final).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pft_ray.crypto import derive_key
from pft_ray.mechanisms import discrete_gaussian, noisy_counts
from tests.statistical.noise_scale import FALSE_POSITIVE_RATE, is_normal_of_scale

pytestmark = pytest.mark.statistical
KEY = bytes(range(32))
SIZE = 40_000


def fits(draws, sigma):
    """Chi-square against exp(-x^2 / (2 sigma^2)) on the integers, normalised."""
    reach = int(20 * sigma) + 2
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * sigma**2))
    expected = weights / weights.sum() * draws.size
    observed = np.array([(draws == value).sum() for value in values])
    assert observed.sum() == draws.size
    common = expected >= 10
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    statistic = float(((observed - expected)[keep] ** 2 / expected[keep]).sum())
    return stats.chi2.sf(statistic, keep.sum() - 1) > FALSE_POSITIVE_RATE


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.0, 1.5, 3.4067, 12.0])
def test_draws_follow_the_exact_law(sigma):
    draws = discrete_gaussian(derive_key(KEY, "law", str(sigma)), sigma, SIZE)
    assert fits(draws, sigma)
    assert not fits(draws, 0.7 * sigma)
    assert not fits(draws, 1.3 * sigma)
    assert not fits(draws, 1.05 * sigma)


def test_wide_noise_of_a_loss_sum():
    """Scale 20 * 1024: the law is the normal one to within the grid."""
    scale = 20.0 * 1024
    draws = discrete_gaussian(KEY, scale, 10_000)
    assert is_normal_of_scale(draws, scale)
    assert not is_normal_of_scale(draws, 0.7 * scale)
    assert not is_normal_of_scale(draws, 1.3 * scale)
    assert stats.kstest(draws / scale, "norm").pvalue > FALSE_POSITIVE_RATE
    assert np.unique(draws % 2).size == 2


def test_counts_carry_the_noise_of_the_event():
    """noisy_counts adds independent noise of the scale to every count."""
    exact = np.full(10_000, 700)
    noise = noisy_counts(KEY, exact, 5.0) - exact
    assert is_normal_of_scale(noise, 5.0)
    assert not is_normal_of_scale(noise, 3.5)
    assert not is_normal_of_scale(noise, 6.5)
    lagged = np.corrcoef(noise[:-1], noise[1:])[0, 1]
    assert abs(lagged) * 100 < stats.norm.isf(FALSE_POSITIVE_RATE / 2)
