"""Assigns units to the training and the validation block by a public hash."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pft_ray.data.spec import SplitSpec

Role = Literal["train", "validation"]
_TWO_64 = 1 << 64


def validation_threshold(validation_fraction: float) -> int:
    """Returns floor(validation_fraction * 2**64), exactly."""
    fraction = Fraction(validation_fraction)
    return (fraction.numerator * _TWO_64) // fraction.denominator


def split_hash(salt: str, value: bytes) -> int:
    """Returns the first 64 bits of SHA-256 over the length-prefixed salt and value.

    The hash is public by design and used at once; it is stored nowhere.
    """
    raw = salt.encode()
    prefix = b"pft-ray/split/1" + len(raw).to_bytes(8, "big") + raw
    return int.from_bytes(hashlib.sha256(prefix + value).digest()[:8], "big")


def role_of(value: bytes, split: SplitSpec) -> Role:
    """Returns the block of a unit.

    Args:
        value: The unit's own value: its declared field, its id or its content.
        split: Salt and fraction.

    Guarantee:
        The block is a function of the unit's own value and the public split alone:
        adding or removing a unit moves no other unit, so each block changes by at
        most that unit, and the blocks compose in parallel. Units with equal values
        are in the same block.
    """
    threshold = validation_threshold(split.validation_fraction)
    if split_hash(split.salt, value) < threshold:
        return "validation"
    return "train"
