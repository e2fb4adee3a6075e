"""The noise that a step really carries: scale, shape, independence.

False-positive rate of each assertion: 1e-9 (each key is fixed, so a pass is final).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian, noise_share, secure_normals, share_std
from tests.statistical.noise_scale import (
    FALSE_POSITIVE_RATE,
    is_binomial,
    is_normal_of_scale,
)

pytestmark = pytest.mark.statistical
SIZE = 40_000
KEY = bytes(range(32))


def test_normals_follow_the_normal_law():
    """Kolmogorov-Smirnov, and the same in the far tails."""
    draws = secure_normals(KEY, 1_000_000)
    assert stats.kstest(draws, "norm").pvalue > FALSE_POSITIVE_RATE
    assert stats.kstest(draws, "norm", args=(0, 0.98)).pvalue < FALSE_POSITIVE_RATE
    for threshold in (2.0, 3.0, 4.0):
        for side in (draws > threshold, draws < -threshold):
            assert is_binomial(side.sum(), draws.size, stats.norm.sf(threshold))


@pytest.mark.parametrize("num_shares", range(1, 9))
def test_the_shares_of_a_step_add_up_to_the_planned_noise(num_shares):
    """Whatever V is: the true scale is accepted, 0.7 and 1.3 times it are not."""
    mechanism = SampledGaussian(0.1, 1.3, num_shares)
    total = np.zeros(SIZE)
    for index in range(num_shares):
        key = derive_key(KEY, "noise", num_shares, index)
        share = mechanism.share(key, SIZE, clip_norm=0.5, numerator=1)
        total += np.concatenate([piece.copy() for piece in share])
    scale = mechanism.event.noise_multiplier * 0.5
    assert is_normal_of_scale(total, scale)
    assert not is_normal_of_scale(total, 0.7 * scale)
    assert not is_normal_of_scale(total, 1.3 * scale)


def test_shares_with_other_numerators_add_up_too():
    """A roster of three that holds 5 fifths as 2 + 2 + 1."""
    total = np.zeros(SIZE)
    for index, numerator in enumerate((2, 2, 1)):
        std = share_std(2.0, 1.0, numerator, 5)
        total += noise_share(derive_key(KEY, "noise", index), SIZE, std)
    assert is_normal_of_scale(total, 2.0)
    assert not is_normal_of_scale(total, 1.4)
    assert not is_normal_of_scale(total, 2.6)


def test_a_missing_share_is_noticed():
    """The tests above can fail: four of five shares are not the planned noise."""
    std = share_std(1.0, 1.0, 1, 2)
    assert not is_normal_of_scale(noise_share(KEY, SIZE, std), 1.0)


def test_streams_of_different_keys_are_independent():
    streams = np.stack(
        [
            secure_normals(derive_key(KEY, "noise", attempt, step, share), SIZE)
            for attempt in range(2)
            for step in range(2)
            for share in range(3)
        ]
    )
    # A correlation of independent normals is N(0, 1/SIZE); 66 pairs are looked at.
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    bound = stats.norm.isf(FALSE_POSITIVE_RATE / 2 / correlations.size)
    assert np.abs(correlations).max() * np.sqrt(SIZE) < bound
    # Neighbouring draws of one stream.
    lagged = np.corrcoef(streams[0][:-1], streams[0][1:])[0, 1]
    assert abs(lagged) * np.sqrt(SIZE) < stats.norm.isf(FALSE_POSITIVE_RATE / 2)


def test_the_sign_is_a_fair_coin_and_independent_of_the_size():
    draws = secure_normals(derive_key(KEY, "sign"), 400_000)
    for part in (draws, draws[np.abs(draws) > 1], draws[np.abs(draws) < 0.1]):
        assert is_binomial((part > 0).sum(), part.size, 0.5)
