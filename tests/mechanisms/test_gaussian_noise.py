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
FIRST = [
    -0.590719546832726,
    0.24567313024067397,
    -0.08706486965265486,
    0.458136341759497,
]


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


def stream_of(monkeypatch, *pairs):
    """Makes the stream these (radius, angle) words; returns the normals (n, 2)."""
    words = np.array(pairs, dtype=np.uint64).ravel()

    def chunks(_key, size, _chunk):
        yield words[:size]

    monkeypatch.setattr(gaussian, "aes_keystream_chunks", chunks)
    return secure_normals(KEY, words.size).reshape(-1, 2)


TOP = 2**64 - 1


@pytest.mark.parametrize("radius", [0, 1, 2**63, TOP - 1, TOP])
@pytest.mark.parametrize("angle", [0, 1, 2, 4, 7, 2**63, TOP - 1, TOP])
def test_extreme_words_give_finite_normals(monkeypatch, radius, angle):
    draws = stream_of(monkeypatch, (radius, angle))
    assert np.isfinite(draws).all()
    assert (np.abs(draws) <= 9.4926).all()


def test_the_tails_reach_where_they_should(monkeypatch):
    """-log(2**-65) = 65 log 2 is the largest squared radius over two."""
    draws = stream_of(monkeypatch, (0, 0), (0, 1), (0, 4), (0, 6))
    largest = math.sqrt(130 * math.log(2))
    assert draws[:, 0] == pytest.approx([largest, -largest, 0, 0], abs=1e-15 * 20)
    assert draws[2:, 1] == pytest.approx([largest, largest], rel=1e-15)


def test_both_tails_are_alike(monkeypatch):
    """The low bits of the angle's word are signs: flipping them mirrors the pair."""
    rng = np.random.default_rng(0)
    radius = rng.integers(0, 2**64, 200, dtype=np.uint64)
    angle = rng.integers(0, 2**64, 200, dtype=np.uint64) & np.uint64(TOP - 7)
    draws = {
        bits: stream_of(monkeypatch, *zip(radius, angle + np.uint64(bits), strict=True))
        for bits in range(8)
    }
    assert (draws[0] > 0).all()
    for bits, signs in ((1, (-1, 1)), (2, (1, -1)), (3, (-1, -1))):
        assert (draws[bits] == draws[0] * signs).all()
        assert (draws[bits + 4] == draws[bits][:, ::-1]).all()


def test_against_a_reference_of_one_pair_at_a_time():
    words = [int(word) for word in aes_keystream(KEY, 400)]
    expected = []
    for radius_word, angle_word in zip(words[::2], words[1::2], strict=True):
        uniform = (Fraction(radius_word) + Fraction(1, 2)) / 2**64
        below = float(1 - uniform)
        log = math.log1p(-below) if below < 0.5 else math.log(float(uniform))
        radius = math.sqrt(-2 * log)
        place = float((Fraction(angle_word >> 3) + Fraction(1, 2)) / 2**61)
        pair = [radius * math.cos(place * math.pi / 4)]
        pair.append(radius * math.sin(place * math.pi / 4))
        pair = [-z if angle_word >> i & 1 else z for i, z in enumerate(pair)]
        expected += pair[::-1] if angle_word & 4 else pair
    assert secure_normals(KEY, 400) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_the_first_normals_of_a_key():
    """Fixed values: a change of the mapping must be made on purpose."""
    assert secure_normals(KEY, 4) == pytest.approx(FIRST, rel=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 999, 1000])
def test_chunks_do_not_show(monkeypatch, size):
    whole = secure_normals(KEY, 1000)
    monkeypatch.setattr(gaussian, "_CHUNK", 64)
    assert (secure_normals(KEY, size) == whole[:size]).all()


def test_a_share_is_its_normals_times_its_deviation():
    std = share_std(1.3, 0.5, 1, 4)
    pieces = SampledGaussian(0.1, 1.3, 4).share(KEY, 50, 0.5, numerator=1)
    share = np.concatenate([piece.copy() for piece in pieces])
    assert share.dtype == np.float64
    assert (share == secure_normals(KEY, 50) * std).all()
    assert noise_share(KEY, 0, std).shape == (0,)


def test_the_same_key_gives_the_same_share_and_another_key_another():
    one = noise_share(KEY, 100, 1.0)
    assert (noise_share(KEY, 100, 1.0) == one).all()
    assert not (noise_share(bytes(32), 100, 1.0) == one).any()
