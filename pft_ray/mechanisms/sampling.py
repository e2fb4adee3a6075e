"""Poisson sampling by a keyed PRF: the same batch for every number of workers."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.accounting.events import check_rate
from pft_ray.crypto import aes_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO_64 = 1 << 64
DIGEST_BYTES = 16


def sampling_threshold(sample_rate: float) -> int:
    """Returns floor(sample_rate * 2**64), exactly; 2**64 means "not sampled".

    The realised rate is threshold / 2**64 <= sample_rate, so accounting with
    ``sample_rate`` is on the safe side.
    """
    rate = Fraction(check_rate(sample_rate))
    return (rate.numerator * TWO_64) // rate.denominator


def poisson_sample(
    step_key: bytes, unit_digests: NDArray[np.uint8], sample_rate: float
) -> NDArray[np.int64]:
    """Returns the positions of the units that are in this step.

    Args:
        step_key: The step's 32-byte sampling key, equal on all ranks.
        unit_digests: uint8 array (n, 16): distinct digests of the units' ids.
        sample_rate: Probability of each unit.

    Returns:
        Increasing positions into ``unit_digests``.

    Raises:
        ValueError: ``unit_digests`` has another type or shape.

    Guarantee:
        Under the PRF assumption on AES-256, every unit is in independently with
        probability threshold / 2**64 <= sample_rate. Whether a unit is in depends
        on (step_key, its digest) alone: not on the other units, the order, or the
        number of workers. The event is ``PoissonGaussian(sample_rate, sigma)`` once
        the sum of the sample's bounded contributions is noised.
    """
    if unit_digests.dtype != np.uint8 or unit_digests.shape[1:] != (DIGEST_BYTES,):
        msg = f"digests are {unit_digests.dtype} of shape {unit_digests.shape}"
        raise ValueError(msg)
    threshold = sampling_threshold(sample_rate)
    if threshold == TWO_64:
        return np.arange(len(unit_digests), dtype=np.int64)
    if len(unit_digests) == 0:
        return np.zeros(0, dtype=np.int64)
    words = aes_blocks(step_key, unit_digests)
    return np.flatnonzero(words < np.uint64(threshold)).astype(np.int64)
