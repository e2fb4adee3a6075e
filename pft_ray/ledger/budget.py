"""Budgets as integers, so that sums are exact and comparisons are never close.

Epsilon is counted in units of 1e-9 and delta in units of 1e-18. A float becomes a
decimal through its shortest written form, so ten envelopes of delta 1e-5 are exactly
a block of delta 1e-4. What a job asks for is rounded up, what a block holds is
rounded down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from numbers import Real
from typing import Any, Literal

from pft_ray.accounting.events import Event, event_from_dict, event_to_dict
from pft_ray.errors import InputError

EPSILON_DIGITS = 9
DELTA_DIGITS = 18
_TINY = 2.2250738585072014e-308  # smallest normal double
_PRECISION = 400  # digits: every finite double is exact below it

Purpose = Literal["training", "evaluation"]
PURPOSES: tuple[Purpose, ...] = ("training", "evaluation")


def _decimal(value: Any, name: str) -> Decimal:
    """Returns the value as written; refuses whatever is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(
            f"{name} is {value!r}, which is not a number.", f"Give {name} as a number."
        )
    number = float(value)
    if not math.isfinite(number) or number < _TINY:
        raise InputError(
            f"{name} is {value!r}.",
            f"Give a finite {name} above zero; budgets are never zero or negative.",
        )
    return Decimal(repr(number))


def _units(value: Any, name: str, digits: int, rounding: str) -> int:
    number = _decimal(value, name)
    with localcontext() as context:
        context.prec = _PRECISION
        context.Emin, context.Emax = -999_999, 999_999
        return int(number.scaleb(digits).to_integral_value(rounding=rounding))


def _delta(value: float, rounding: str) -> int:
    units = _units(value, "delta", DELTA_DIGITS, rounding)
    if units >= 10**DELTA_DIGITS:
        raise InputError(f"delta is {value!r}.", "Give delta below 1.")
    return units


def envelope_epsilon_units(epsilon: float) -> int:
    """Returns epsilon in units of 1e-9, rounded up.

    Raises:
        InputError: NaN, infinite, zero, negative, subnormal or not a number.
    """
    return _units(epsilon, "epsilon", EPSILON_DIGITS, ROUND_CEILING)


def envelope_delta_units(delta: float) -> int:
    """Returns delta in units of 1e-18, rounded up; refuses like epsilon, and >= 1."""
    return _delta(delta, ROUND_CEILING)


def block_epsilon_units(epsilon: float) -> int:
    """Returns epsilon in units of 1e-9, rounded down; refuses less than one unit."""
    return _at_least_one(
        _units(epsilon, "epsilon", EPSILON_DIGITS, ROUND_FLOOR), "epsilon", "1e-9"
    )


def block_delta_units(delta: float) -> int:
    """Returns delta in units of 1e-18, rounded down; refuses less than one unit."""
    return _at_least_one(_delta(delta, ROUND_FLOOR), "delta", "1e-18")


def _at_least_one(units: int, name: str, unit: str) -> int:
    if units < 1:
        raise InputError(
            f"The {name} of a block is below the ledger's unit of {unit}.",
            f"Give the block more {name}.",
        )
    return units


def epsilon_value(units: int) -> float:
    """Returns the epsilon that ``units`` of 1e-9 stand for."""
    return float(Decimal(units).scaleb(-EPSILON_DIGITS))


def delta_value(units: int) -> float:
    """Returns the delta that ``units`` of 1e-18 stand for."""
    return float(Decimal(units).scaleb(-DELTA_DIGITS))


@dataclass(frozen=True)
class Envelope:
    """What one run may take from one block: (epsilon, delta) and the event for it.

    Attributes:
        block: Name of the block that pays.
        purpose: ``training`` or ``evaluation``.
        epsilon_units: Epsilon in units of 1e-9.
        delta_units: Delta in units of 1e-18.
        event: What is done to the block's data, all planned steps or looks of it.
    """

    block: str
    purpose: Purpose
    epsilon_units: int
    delta_units: int
    event: Event

    @classmethod
    def priced(
        cls, block: str, purpose: Purpose, epsilon: float, delta: float, event: Event
    ) -> Envelope:
        """Returns the envelope of an event priced at (epsilon, delta), rounded up."""
        return cls(
            block=block,
            purpose=purpose,
            epsilon_units=envelope_epsilon_units(epsilon),
            delta_units=envelope_delta_units(delta),
            event=event,
        )

    @property
    def role(self) -> Purpose:
        """Whether it pays for steps (training) or looks (evaluation)."""
        return self.purpose

    @property
    def epsilon(self) -> float:
        """Epsilon of the envelope."""
        return epsilon_value(self.epsilon_units)

    @property
    def delta(self) -> float:
        """Delta of the envelope."""
        return delta_value(self.delta_units)

    def to_dict(self) -> dict[str, Any]:
        """Returns the envelope as JSON."""
        return {
            "block": self.block,
            "purpose": self.purpose,
            "epsilon_units": self.epsilon_units,
            "delta_units": self.delta_units,
            "event": event_to_dict(self.event),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Envelope:
        """Reads an envelope written by :meth:`to_dict`.

        Raises:
            InputError: A field is missing, extra, of a wrong type or out of range.
        """
        if not isinstance(data, dict) or set(data) != _ENVELOPE_FIELDS:
            raise InputError("An envelope with wrong fields.", "Verify the ledger.")
        if data["purpose"] not in PURPOSES or not isinstance(data["block"], str):
            raise InputError(
                f"An envelope with purpose {data['purpose']!r}.",
                f"Purposes are {', '.join(PURPOSES)}.",
            )
        for name in ("epsilon_units", "delta_units"):
            if type(data[name]) is not int or data[name] < 1:
                raise InputError(
                    f"An envelope with {name} {data[name]!r}.",
                    "Give an integer of at least one unit.",
                )
        return cls(**{**data, "event": event_from_dict(data["event"])})


_ENVELOPE_FIELDS = {"block", "purpose", "epsilon_units", "delta_units", "event"}
