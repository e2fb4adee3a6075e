"""Gaussian shares: rounding of the deviation and the generator at its extremes.

What the noise is like on average is tested under tests/statistical.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from pft_ray.crypto import aes_keystream
from pft_ray.errors import PlanError
from pft_ray.mechanisms import (
    SampledGaussian,
    gaussian,
    noise_share,
    secure_normals,
    share_std,
)

KEY = bytes(range(32))


@given(
    sigma=st.floats(1e-3, 1e4),
    clip=st.floats(1e-6, 1e4),
    numerator=st.integers(1, 10**6),
    denominator=st.integers(1, 10**6),
)
def test_deviation_is_never_below_the_exact_value(sigma, clip, numerator, denominator):
    """Squares are compared as fractions: no rounding in the test itself."""
    std = Fraction(share_std(sigma, clip, numerator, denominator))
    exact = (Fraction(sigma) * Fraction(clip)) ** 2 * Fraction(numerator, denominator)
    assert std**2 >= exact
    assert std**2 <= exact * (1 + Fraction(1, 2**47))


@given(num_shares=st.integers(1, 64), sigma=st.floats(0.1, 100.0))
def test_all_shares_together_carry_the_whole_variance(num_shares, sigma):
    variance = sum(
        Fraction(share_std(sigma, 1.0, 1, num_shares)) ** 2 for _ in range(num_shares)
    )
    assert variance >= Fraction(sigma) ** 2


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 1.0, 1, 1),
        (-1.0, 1.0, 1, 1),
        (1.0, 0.0, 1, 1),
        (math.nan, 1.0, 1, 1),
        (1.0, math.inf, 1, 1),
        (1.0, 1.0, 0, 1),
        (1.0, 1.0, 1, 0),
        (1.0, 1.0, 0.5, 1),
        (1e200, 1e200, 1, 1),
    ],
)
def test_deviations_that_are_refused(arguments):
    """An overflow would be infinite noise, a zero none at all."""
    with pytest.raises(PlanError):
        share_std(*arguments)


@pytest.mark.parametrize("word", [0, 1, 2, 2**63, 2**64 - 1, 2**64 - 2])
def test_extreme_words_give_finite_normals(monkeypatch, word):
    def stream(_key, size):
        return np.full(size, word, dtype=np.uint64)

    monkeypatch.setattr(gaussian, "aes_keystream", stream)
    draws = secure_normals(KEY, 3)
    assert np.isfinite(draws).all()
    assert (np.abs(draws) <= 9.16).all()
    assert (np.sign(draws) == (1 if word % 2 else -1)).all() or draws[0] == 0


def test_both_tails_are_alike(monkeypatch):
    words = np.array([0, 1, 10, 11, 2**40, 2**40 + 1], dtype=np.uint64)
    monkeypatch.setattr(gaussian, "aes_keystream", lambda _key, _size: words)
    draws = secure_normals(KEY, words.size)
    assert (draws[::2] == -draws[1::2]).all()
    assert draws[0] == pytest.approx(-9.155, abs=1e-3)


def test_against_a_reference_of_one_word_at_a_time():
    words = [int(word) for word in aes_keystream(KEY, 200)]
    expected = []
    for word in words:
        cell = (Fraction(word >> 1) + Fraction(1, 2)) / 2**64
        half = float(ndtri(float(cell)))
        expected.append(-half if word & 1 else half)
    assert secure_normals(KEY, 200) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_chunks_do_not_show(monkeypatch):
    whole = secure_normals(KEY, 1000)
    monkeypatch.setattr(gaussian, "_CHUNK", 64)
    assert (secure_normals(KEY, 1000) == whole).all()


def test_a_share_is_its_normals_times_its_deviation():
    std = share_std(1.3, 0.5, 1, 4)
    share = SampledGaussian(0.1, 1.3, 4).share(KEY, 50, clip_norm=0.5, numerator=1)
    assert share.dtype == np.float64
    assert (share == secure_normals(KEY, 50) * std).all()
    assert noise_share(KEY, 0, std).shape == (0,)


def test_the_same_key_gives_the_same_share_and_another_key_another():
    one = noise_share(KEY, 100, 1.0)
    assert (noise_share(KEY, 100, 1.0) == one).all()
    assert not (noise_share(bytes(32), 100, 1.0) == one).any()
