"""The keyed sampler: one global batch, whoever computes it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.accounting.events import PoissonGaussian
from pft_ray.crypto import derive_key, keyed_digest
from pft_ray.errors import PlanError
from pft_ray.mechanisms import (
    SampledGaussian,
    poisson_sample,
    sampling,
    sampling_threshold,
)

KEY = bytes(range(32))
RATE = 0.05


def digests(count):
    raw = b"".join(keyed_digest(KEY, b"unit %d" % index) for index in range(count))
    return np.frombuffer(raw, np.uint8).reshape(-1, 16)


UNITS = digests(3000)


def test_against_a_reference_of_one_unit_at_a_time():
    """AES of the digest, first 64 bits little-endian, below the threshold."""
    threshold = int(Fraction(RATE) * 2**64)
    expected = []
    for index, unit in enumerate(UNITS[:500]):
        cipher = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
        block = cipher.update(unit.tobytes())
        if int.from_bytes(block[:8], "little") < threshold:
            expected.append(index)
    found = poisson_sample(KEY, UNITS[:500], RATE)
    assert found.tolist() == expected
    assert found.dtype == np.int64
    assert 5 < len(expected) < 60


@pytest.mark.parametrize("num_workers", [1, 3, 8])
def test_workers_draw_the_same_global_batch(num_workers):
    whole = poisson_sample(KEY, UNITS, RATE)
    parts = []
    for rank in range(num_workers):
        own = np.arange(rank, len(UNITS), num_workers)
        parts.append(own[poisson_sample(KEY, UNITS[own], RATE)])
    assert np.sort(np.concatenate(parts)).tolist() == whole.tolist()


@given(st.integers(0, len(UNITS) - 1))
def test_no_bit_of_another_unit_moves_when_one_leaves(index):
    before = set(poisson_sample(KEY, UNITS, RATE).tolist())
    rest = np.delete(np.arange(len(UNITS)), index)
    after = set(rest[poisson_sample(KEY, UNITS[rest], RATE)].tolist())
    assert after == before - {index}


def test_the_order_of_units_does_not_matter():
    order = np.random.default_rng(0).permutation(len(UNITS))
    shuffled = order[poisson_sample(KEY, UNITS[order], RATE)]
    assert np.sort(shuffled).tolist() == poisson_sample(KEY, UNITS, RATE).tolist()


def test_another_step_key_gives_another_batch():
    one = poisson_sample(derive_key(KEY, "sample", 0, 1), UNITS, RATE)
    two = poisson_sample(derive_key(KEY, "sample", 0, 2), UNITS, RATE)
    attempt = poisson_sample(derive_key(KEY, "sample", 1, 1), UNITS, RATE)
    again = poisson_sample(derive_key(KEY, "sample", 0, 1), UNITS, RATE)
    assert one.tolist() == again.tolist()
    assert one.tolist() != two.tolist()
    assert one.tolist() != attempt.tolist()


def test_rate_one_takes_every_unit():
    """2**64 does not fit in 64 bits: it must not become 0."""
    assert sampling_threshold(1.0) == 2**64
    assert poisson_sample(KEY, UNITS, 1.0).tolist() == list(range(len(UNITS)))
    almost = 1.0 - 2.0**-53
    assert sampling_threshold(almost) == 2**64 - 2**11
    assert len(poisson_sample(KEY, UNITS, almost)) == len(UNITS)


def test_no_unit_of_its_own():
    for rate in (RATE, 1.0):
        empty = poisson_sample(KEY, UNITS[:0], rate)
        assert empty.shape == (0,)
        assert empty.dtype == np.int64


@given(st.floats(1e-300, 1.0))
def test_the_realised_rate_is_never_above_the_accounted_one(rate):
    threshold = sampling_threshold(rate)
    assert 0 <= threshold <= 2**64
    realised = Fraction(threshold, 2**64)
    assert realised <= Fraction(rate)
    assert Fraction(rate) - realised < Fraction(1, 2**64)
    assert SampledGaussian(rate, 1.0, 1).event == PoissonGaussian(rate, 1.0)


def test_the_threshold_is_exact():
    """A threshold next to the cipher's own word decides about one unit."""
    cipher = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    word = int.from_bytes(cipher.update(UNITS[0].tobytes())[:8], "little")
    exponent = max(0, word.bit_length() - 53)  # a rate that a float can hold
    above = ((word >> exponent) + 1) << exponent
    below = (word >> exponent) << exponent
    assert sampling_threshold(above / 2**64) == above
    assert sampling_threshold(below / 2**64) == below
    assert poisson_sample(KEY, UNITS[:1], above / 2**64).tolist() == [0]
    assert poisson_sample(KEY, UNITS[:1], below / 2**64).tolist() == []


def test_a_word_at_the_threshold_is_out(monkeypatch):
    """P(word < threshold) is threshold / 2**64; with <= it would be more."""
    words = np.array([2**61 - 1, 2**61, 2**61 + 1], dtype=np.uint64)
    monkeypatch.setattr(sampling, "aes_blocks", lambda _key, _blocks: words)
    assert poisson_sample(KEY, UNITS[:3], 2**61 / 2**64).tolist() == [0]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), "0.1"])
def test_rates_that_are_refused(rate):
    with pytest.raises(PlanError):
        poisson_sample(KEY, UNITS, rate)


@pytest.mark.parametrize(
    "bad", [UNITS.astype(np.int64), UNITS[:, :8].copy(), UNITS[:, :0], UNITS.ravel()]
)
@pytest.mark.parametrize("rate", [RATE, 1.0])
def test_digests_of_another_form_are_refused(bad, rate):
    """Casting to bytes would fold different ids into one."""
    with pytest.raises(ValueError, match="digests"):
        poisson_sample(KEY, bad, rate)
