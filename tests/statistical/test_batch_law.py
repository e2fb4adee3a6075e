"""Batches are Poisson samples: size, pairs and steps behave as independent coins.

False-positive rate of each assertion: 1e-9 (keys are fixed, so a pass is final).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pft_ray.crypto import derive_key, keyed_digest
from pft_ray.mechanisms import poisson_sample
from tests.statistical.noise_scale import FALSE_POSITIVE_RATE, is_binomial

pytestmark = pytest.mark.statistical
KEY = bytes(range(32))
NUM_UNITS, NUM_STEPS, RATE = 2000, 400, 0.05


@pytest.fixture(scope="module")
def membership():
    """Boolean (steps, units): who was in which step."""
    digests = np.frombuffer(
        b"".join(keyed_digest(KEY, b"%d" % i) for i in range(NUM_UNITS)), np.uint8
    ).reshape(-1, 16)
    table = np.zeros((NUM_STEPS, NUM_UNITS), dtype=bool)
    for step in range(NUM_STEPS):
        key = derive_key(KEY, "sample", 0, step)
        table[step, poisson_sample(key, digests, RATE)] = True
    return table


def test_total_participation(membership):
    total = int(membership.sum())
    assert is_binomial(total, membership.size, RATE)
    assert not is_binomial(total, membership.size, 0.95 * RATE)
    assert not is_binomial(total, membership.size, 1.05 * RATE)


def test_batch_sizes_have_the_variance_of_coins(membership):
    """A fixed-size or a shuffled batch has none; clumped sampling has more."""
    sizes = membership.sum(axis=1)
    variance = NUM_UNITS * RATE * (1 - RATE)
    statistic = ((sizes - NUM_UNITS * RATE) ** 2).sum() / variance
    tail = FALSE_POSITIVE_RATE / 2
    low, high = stats.chi2.ppf([tail, 1 - tail], NUM_STEPS)
    # Sizes are close to normal but not quite: 10 % on top of both bounds.
    assert 0.9 * low <= statistic <= 1.1 * high
    assert sizes.min() < NUM_UNITS * RATE < sizes.max()


def test_units_have_the_variance_of_coins(membership):
    """A sampler that visits each unit once an epoch has less."""
    visits = membership.sum(axis=0)
    variance = NUM_STEPS * RATE * (1 - RATE)
    statistic = ((visits - NUM_STEPS * RATE) ** 2).sum() / variance
    tail = FALSE_POSITIVE_RATE / 2
    low, high = stats.chi2.ppf([tail, 1 - tail], NUM_UNITS)
    assert 0.95 * low <= statistic <= 1.05 * high


def test_steps_are_independent(membership):
    """Units of two steps meet as often as chance says."""
    pairs = sum(
        int((membership[step] & membership[step + lag]).sum())
        for lag in (1, 2, 7)
        for step in range(NUM_STEPS - lag)
    )
    trials = sum(NUM_UNITS * (NUM_STEPS - lag) for lag in (1, 2, 7))
    assert is_binomial(pairs, trials, RATE**2)
    assert not is_binomial(pairs, trials, 1.2 * RATE**2)


def test_units_are_independent(membership):
    """Two units share a step as often as chance says."""
    pairs = int((membership[:, :-1] & membership[:, 1:]).sum())
    assert is_binomial(pairs, NUM_STEPS * (NUM_UNITS - 1), RATE**2)
