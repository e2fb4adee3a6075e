"""Checks of the numbers that a snapshot is made of."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from pft_ray.errors import ScalingError


def check_amount(value: Any, name: str) -> float:
    """Returns ``value`` as a finite float >= 0; refuses bools and strings."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ScalingError(f"{name} is {value!r}.", f"Give {name} as a number.")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ScalingError(f"{name} is {value!r}.", f"Give {name} as a number >= 0.")
    return number


def check_optional_amount(value: Any, name: str) -> float | None:
    """Returns None, or ``value`` as a finite float >= 0."""
    return None if value is None else check_amount(value, name)


def check_whole(value: Any, name: str, least: int = 0) -> int:
    """Returns ``value`` as an int >= ``least``; refuses bools and fractions."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ScalingError(
            f"{name} is {value!r}.", f"Give {name} as an integer >= {least}."
        )
    return int(value)


def check_name(value: Any, name: str) -> str:
    """Returns ``value``, a string that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ScalingError(f"{name} is {value!r}.", f"Give {name} as a word.")
    return value
