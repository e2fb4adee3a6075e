"""Which way to hide users costs less noise: sampling users, or sampling records.

Both ways draw the same expected number of records a step at the same sample rate q:
q times n users of m records each, or q times n * m records. They are compared by the
noise of a step over the largest signal of a step, sigma * C / (q * count * C), from
declared numbers alone: no record is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from pft_ray.accounting.plan import UserKind, UserLevel

KINDS: tuple[UserKind, UserKind] = ("uls", "els")


@dataclass(frozen=True)
class UserPrice:
    """What one way to hide users costs.

    Attributes:
        user: The way.
        noise_multiplier: Calibrated to the target; infinite when none reaches it.
        expected_count: Expected clipped contributions a step: users or records.
    """

    user: UserLevel
    noise_multiplier: float
    expected_count: float

    @property
    def noise_to_signal(self) -> float:
        """Noise of a step over the largest expected sum of a step."""
        return self.noise_multiplier / self.expected_count

    def to_dict(self) -> dict[str, Any]:
        """Returns the price as JSON."""
        finite = math.isfinite(self.noise_multiplier)
        return {
            "user_level": self.user.kind,
            "noise_multiplier": self.noise_multiplier if finite else None,
            "expected_contributions": self.expected_count,
            "noise_to_signal": self.noise_to_signal if finite else None,
        }


def price_user_levels(
    user: UserLevel,
    *,
    num_users: int,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    num_steps: int,
) -> tuple[UserPrice, UserPrice]:
    """Returns what ``uls`` and ``els`` cost at one budget, one rate and one cap.

    Args:
        user: Cap, declared records and contribution; its kind is not used.
        num_users: Declared number of users.
        target_epsilon: PLD epsilon that may not be passed.
        delta: In (0, 1).
        sample_rate: q, of users and of records.
        num_steps: T_max.
    """
    prices = []
    for kind in KINDS:
        level = replace(user, kind=kind)
        try:
            sigma = calibrate_noise_multiplier(
                target_epsilon=target_epsilon,
                delta=delta,
                sample_rate=sample_rate,
                num_steps=num_steps,
                user=level,
            )
        except PlanError:
            sigma = math.inf
        count = num_users if kind == "uls" else user.num_records
        prices.append(UserPrice(level, sigma, sample_rate * count))
    return prices[0], prices[1]


def cheaper(prices: tuple[UserPrice, UserPrice]) -> UserPrice:
    """Returns the price with less noise to signal; ``uls`` when they are equal.

    Raises:
        PlanError: Neither reaches the target.
    """
    best = min(prices, key=lambda price: price.noise_to_signal)
    if math.isinf(best.noise_multiplier):
        raise PlanError(
            "No noise reaches the target, neither by users nor by records.",
            "Raise epsilon, or lower the sample rate or the number of steps.",
        )
    return best


def _said(price: UserPrice) -> str:
    if math.isfinite(price.noise_multiplier):
        return f"{price.user.kind} {price.noise_to_signal:.4g}"
    most = price.user.max_records_per_user
    return (
        f"{price.user.kind} out of reach (no noise hides a user of up to {most} "
        "records at this budget)"
    )


def reason(prices: tuple[UserPrice, UserPrice], chosen: UserKind, asked: str) -> str:
    """Returns in one sentence which way is taken and why."""
    said = " and ".join(_said(price) for price in prices)
    best = min(prices, key=lambda price: price.noise_to_signal).user.kind
    why = "it has less noise" if asked == "auto" else "the job asks for it"
    text = f"{chosen}, because {why}: noise to signal of a step is {said}"
    if chosen != best:
        text += f"; {best} would have less noise"
    return text + "."
