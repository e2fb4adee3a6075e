"""Gaussian noise shares from a cryptographically secure stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.accounting.events import check_count, check_positive
from pft_ray.crypto import aes_keystream_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CHUNK = 1 << 15  # words, an even number; the buffers of a chunk stay in the cache

_SINE = tuple((-1) ** (k // 2) / math.factorial(k) for k in range(15, 1, -2))
"""Taylor coefficients of x**15 to x**3: up to pi/4 the rest is below 2**-54."""


def secure_normals(key: bytes, size: int) -> NDArray[np.float64]:
    """Returns ``size`` standard normals from the AES-256-CTR stream of ``key``.

    Two 64-bit words give two normals, r cos(t) and r sin(t) (Box and Muller 1958).
    The first word is a uniform u in (0, 1), centred in its cell of 2**-64, and
    r = sqrt(-2 log u). Of the second, three bits choose the octant of t (both signs and
    which of the two is the sine) and 61 bits its place there. Signs are bits of
    their own, so both tails are exactly alike. They reach |z| = 9.49; what lies beyond
    has probability 3e-20. All is computed in fp64, each step within two units in
    the last place. docs/guarantees.md says what sampling on this grid does and does
    not defend.
    """
    return noise_share(key, size, 1.0)


def noise_pieces(key: bytes, size: int, std: float) -> Iterator[NDArray[np.float64]]:
    """Yields :func:`noise_share` in pieces, in order, that stay in the cache.

    Every piece is a view of one buffer that the next piece overwrites.
    """
    out = np.empty(_CHUNK, dtype=np.float64)
    start = 0
    for words in aes_keystream_chunks(key, size + size % 2, _CHUNK):
        first, second = _box_muller(words[::2], words[1::2])
        part = out[: min(len(words), size - start)]
        np.multiply(first, std, out=part[::2])
        np.multiply(second[: len(part) // 2], std, out=part[1::2])
        yield part
        start += len(words)


def _box_muller(
    radius_words: NDArray[np.uint64], angle_words: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    radius = radius_words.astype(np.float64)
    radius += 0.5
    radius *= 2.0**-64
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    bits = angle_words >> np.uint64(3)
    angle = bits.view(np.int64).astype(np.float64)
    angle += 0.5
    angle *= 2.0**-61 * math.pi / 4
    square = angle * angle
    sine = square * _SINE[0]
    for coefficient in _SINE[1:]:
        sine += coefficient
        sine *= square
    sine *= angle
    sine += angle
    np.subtract(1.0, sine, out=square)  # exact for sines above 1/2
    np.add(1.0, sine, out=angle)
    square *= angle
    cosine = np.sqrt(square, out=square)
    sine *= radius
    cosine *= radius
    _flip_and_swap(cosine.view(np.uint64), sine.view(np.uint64), angle_words)
    return cosine, sine


def _flip_and_swap(
    first: NDArray[np.uint64], second: NDArray[np.uint64], words: NDArray[np.uint64]
) -> None:
    """Sets sign bits from bits 0 and 1 of ``words``, swaps where bit 2 is set."""
    top = np.uint64(63)
    bits = words << top
    first ^= bits
    np.right_shift(words, np.uint64(1), out=bits)
    bits <<= top
    second ^= bits
    np.right_shift(words, np.uint64(2), out=bits)
    bits &= np.uint64(1)
    np.negative(bits, out=bits)  # all ones where the bit is set
    bits &= first ^ second
    first ^= bits
    second ^= bits


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
    out = np.empty(size, dtype=np.float64)
    start = 0
    for piece in noise_pieces(key, size, std):
        out[start : start + len(piece)] = piece
        start += len(piece)
    return out
