"""The check beside every reduction: is the noise really all there?

Each rank publishes a header of 64-bit integers (no private value in it) that names
the attempt, the step, the plan and the noise shares that it is about to draw. Every
rank compares all headers before any noise is drawn.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.errors import VoidStepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FIXED = 9  # attempt, step, phase, clip bits, four words of digest, number of pairs


@dataclass(frozen=True)
class ShareHeader:
    """What one rank says it is about to do.

    Attributes:
        attempt: Number of the attempt.
        step: Planned step, counted from 0.
        phase: Index of the plan's phase.
        clip_norm: The phase's clip norm; compared bit by bit.
        plan_digest: Hex SHA-256 of the plan.
        shares: (share index, numerator) pairs that this rank will draw.
    """

    attempt: int
    step: int
    phase: int
    clip_norm: float
    plan_digest: str
    shares: tuple[tuple[int, int], ...]

    def pack(self, max_shares: int) -> NDArray[np.int64]:
        """Returns the header as int64 words, padded to ``max_shares`` pairs."""
        if len(self.shares) > max_shares:
            raise VoidStepError(
                f"A rank holds {len(self.shares)} shares of {max_shares}."
            )
        words = np.full(header_length(max_shares), -1, dtype=np.int64)
        (clip_bits,) = struct.unpack("<q", struct.pack("<d", self.clip_norm))
        digest = np.frombuffer(bytes.fromhex(self.plan_digest), dtype="<i8")
        words[:4] = (self.attempt, self.step, self.phase, clip_bits)
        words[4:8] = digest
        words[8] = len(self.shares)
        for slot, pair in enumerate(self.shares):
            words[_FIXED + 2 * slot : _FIXED + 2 * slot + 2] = pair
        return words


def header_length(max_shares: int) -> int:
    """Returns the number of int64 words of a packed header."""
    return _FIXED + 2 * max_shares


def check_headers(
    headers: Sequence[NDArray[np.int64]],
    own: NDArray[np.int64],
    denominator: int,
    *,
    num_missing: int = 0,
) -> None:
    """Checks that all ranks do the same step and that the noise is complete.

    Args:
        headers: Packed headers of all ranks, this one included.
        own: This rank's packed header.
        denominator: The shares that carry the whole noise, each with numerator 1: the
            plan's V, less those that its rosters may lack.
        num_missing: How many rosters may lack; indices lie below the sum of the two.

    Raises:
        VoidStepError: Attempt, step, phase, clip norm or plan differ between ranks,
            this rank's header is not among them, a header is malformed, a share
            index appears twice or is out of range, a rank holds no share, or the
            numerators sum to less than the denominator. The step stays charged and
            is not applied.

    Guarantee:
        When this returns on every rank, the shares about to be drawn carry at least
        the whole variance of the plan, each key once.
    """
    num_shares = denominator + num_missing
    if not any(np.array_equal(words, own) for words in headers):
        raise VoidStepError("This rank's own header is missing from the roster.")
    seen: set[int] = set()
    total = 0
    for rank, words in enumerate(headers):
        if not np.array_equal(words[:8], own[:8]):
            raise VoidStepError(
                f"Rank {rank} is at another step, attempt or plan than this rank."
            )
        count = int(words[8]) if len(words) >= _FIXED else -1
        if not 0 <= count <= (len(words) - _FIXED) // 2:
            raise VoidStepError(f"The header of rank {rank} is malformed.")
        if count == 0:
            # Its sum would leave the process without any noise of its own.
            raise VoidStepError(f"Rank {rank} holds no noise share.")
        pairs = words[_FIXED : _FIXED + 2 * count].reshape(count, 2).tolist()
        for index, numerator in pairs:
            if index in seen or not 0 <= index < num_shares or numerator < 1:
                raise VoidStepError(
                    f"Noise share {index} of rank {rank} is repeated or unknown."
                )
            seen.add(index)
            total += numerator
    if total < denominator:
        raise VoidStepError(
            f"The roster carries {total}/{denominator} of the noise variance."
        )


def assign_shares(
    num_shares: int, num_workers: int, rank: int
) -> tuple[tuple[int, int], ...]:
    """Returns the (index, numerator) pairs of ``rank``, each share 1/V of the variance.

    Share i goes to rank i modulo the number of workers.
    """
    return tuple((index, 1) for index in range(rank, num_shares, num_workers))
