"""Adaptive allocation: what the next round may take of a filter block's budget.

A round is an epoch or a job. A filter (see :mod:`pft_ray.accounting.filters`) allows
each round's share to depend on everything that earlier rounds released, as long as
the shares sum to at most the budget. What the rule below sees is released utility,
which was paid for, and public numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from pft_ray.accounting.events import (
    PoissonGaussian,
    Repeat,
    check_count,
    check_count_or_zero,
    check_positive,
    check_rate,
)
from pft_ray.accounting.filters import rho_units
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOWEST, _HIGHEST = 0.05, 1e5
_PRECISION = 1e-6


class Released(NamedTuple):
    """A utility that a round released: larger is better; ``error`` is its noise's.

    ``error`` is one standard deviation of the noise that was added.
    """

    value: float
    error: float


@dataclass(frozen=True)
class Allocation:
    """How shares follow from what was released.

    Attributes:
        boost: A round after a round without visible gain weighs this many times what
            it does by itself against the rounds after it, one after a round with gain
            this many times less. 1 is the static allocation: what is left is shared
            evenly.
    """

    boost: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.boost) or self.boost < 1:
            raise PlanError(
                f"The allocation's boost is {self.boost!r}.", "Give 1 or more."
            )

    def share(
        self, units_left: int, weights_left: Sequence[int], released: Sequence[Released]
    ) -> int:
        """Returns the units of rho that the next round takes.

        Args:
            units_left: Units that no earlier round has taken.
            weights_left: Public weight of the next round and of all after it, for
                example their numbers of steps.
            released: What the rounds before released, oldest first.

        Raises:
            PlanError: There is no round, or a number is out of range.

        Guarantee:
            0 <= share <= units_left, so that the shares of all rounds sum to at most
            the budget whatever was released. The last round takes what is left; no
            other takes all of it.
        """
        left = check_count_or_zero(units_left, "units_left")
        weights = [check_count(weight, "A round's weight") for weight in weights_left]
        if not weights:
            raise PlanError("No round is left.", "Give the weights of those to come.")
        mine, others = Fraction(weights[0]), Fraction(sum(weights[1:]))
        if _stalled(released):
            mine *= Fraction(self.boost)
        else:
            others *= Fraction(self.boost)
        return math.floor(left * mine / (mine + others))


def _stalled(released: Sequence[Released]) -> bool:
    """Whether the last round's gain is not larger than the noise of the two values."""
    if len(released) < 2:
        return False
    before, last = released[-2], released[-1]
    return last.value - before.value <= math.hypot(before.error, last.error)


def noise_multiplier_of_share(
    units: int, *, order: int, sample_rate: float, num_steps: int
) -> float:
    """Returns a noise multiplier whose steps cost at most ``units`` at ``order``.

    The smallest one up to a relative 1e-6, on the private side.

    Args:
        units: Units of rho (2**-40) of the share.
        order: The block's fixed order.
        sample_rate: q of each step.
        num_steps: Steps that the share pays for, fault reserve included.

    Raises:
        PlanError: The share buys no noise multiplier up to 1e5.
    """
    check_count(units, "units")
    check_rate(sample_rate)
    check_count(num_steps, "num_steps")

    def fits(sigma: float) -> bool:
        event = Repeat(PoissonGaussian(sample_rate, sigma), num_steps)
        return rho_units(event, order) <= units

    low, high = _LOWEST, _HIGHEST
    if not fits(high):
        raise PlanError(
            f"{units} units of rho do not pay for {num_steps} steps at order {order}.",
            "Ask for fewer steps or a larger share.",
        )
    if fits(low):
        return low
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return check_positive(high, "noise_multiplier")
