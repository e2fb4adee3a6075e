"""The helpers refuse what they are meant to refuse."""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistical.noise_scale import ENOUGH, is_binomial, is_normal_of_scale

pytestmark = pytest.mark.statistical


def test_scales_are_told_apart_at_the_smallest_allowed_size():
    draws = np.random.default_rng(1).normal(0, 2.0, ENOUGH)
    assert is_normal_of_scale(draws, 2.0)
    assert not is_normal_of_scale(draws, 1.4)
    assert not is_normal_of_scale(draws, 2.6)
    assert not is_normal_of_scale(np.zeros(ENOUGH), 2.0)
    assert not is_normal_of_scale(draws + 0.5, 2.0)


def test_too_few_samples_are_refused():
    with pytest.raises(AssertionError, match="too few"):
        is_normal_of_scale(np.zeros(10), 1.0)


def test_counts_are_told_apart():
    assert is_binomial(5000, 100_000, 0.05)
    assert not is_binomial(4500, 100_000, 0.05)
    assert not is_binomial(5500, 100_000, 0.05)
