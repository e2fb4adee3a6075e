"""Gaussian noise shares from a cryptographically secure stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from pft_ray.accounting.events import check_count, check_positive
from pft_ray.crypto import aes_keystream

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 20


def secure_normals(key: bytes, size: int) -> NDArray[np.float64]:
    """Returns ``size`` standard normals from the AES-256-CTR stream of ``key``.

    Each uses one 64-bit word: one bit is the sign, the other 63 give a uniform in
    (0, 1/2], centred in its cell, and the normal is the inverse distribution function
    of it. Both tails are alike and reach |z| = 9.15; what lies beyond has probability
    5e-20. docs/guarantees.md says what sampling on this grid does and does not
    defend.
    """
    words = aes_keystream(key, size)
    out = np.empty(size, dtype=np.float64)
    for start in range(0, size, _CHUNK):
        part = words[start : start + _CHUNK]
        uniform = ((part >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
        half = ndtri(uniform)
        positive = (part & np.uint64(1)).astype(bool)
        out[start : start + _CHUNK] = np.where(positive, -half, half)
    return out


def share_std(
    noise_multiplier: float, clip_norm: float, numerator: int, denominator: int
) -> float:
    """Returns the standard deviation of a share, rounded up.

    The share carries numerator/denominator of the variance (sigma C)**2.

    Raises:
        PlanError: A number is out of range or the deviation overflows.
    """
    check_positive(noise_multiplier, "noise_multiplier")
    check_positive(clip_norm, "clip_norm")
    check_count(numerator, "numerator")
    check_count(denominator, "denominator")
    std = noise_multiplier * clip_norm * math.sqrt(numerator / denominator)
    # The product, quotient and root each err by at most half a unit in the last
    # place (under 3 units together): four steps up is never below the exact value.
    for _ in range(4):
        std = math.nextafter(std, math.inf)
    return check_positive(std, "the deviation of a noise share")


def noise_share(key: bytes, size: int, std: float) -> NDArray[np.float64]:
    """Returns one share of the step's noise: ``size`` normals of deviation ``std``.

    Args:
        key: The noise key of (run, attempt, step, share); used for this share only.
        size: Number of coordinates.
        std: From :func:`share_std`.

    Guarantee:
        Shares whose numerators sum to the denominator or more, drawn under distinct
        keys, sum to a Gaussian of deviation at least noise_multiplier * clip_norm in
        every coordinate, up to the 2**-64 grid and the rounding of the sum.
        Adding them to a sum of units each of norm at most clip_norm is the event
        ``Gaussian(noise_multiplier)`` (Dwork and Roth 2014, appendix A), amplified
        by sampling as ``PoissonGaussian``.
    """
    noise = secure_normals(key, size)
    noise *= std
    return noise
