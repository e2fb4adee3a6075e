"""Adaptive clipping: the clip norm follows a quantile of the units' norms.

Andrew, Thakkar, McMahan and Ramaswamy 2021 (arXiv:1905.03871). A step releases, beside
the clipped sum, a noisy count of the units whose norm lies within C; the next C is a
function of that count. Sum and count are one vector with one isotropic noise, so they
are one event, with the noise multiplier of the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pft_ray.accounting.events import check_positive, check_rate, store
from pft_ray.errors import PlanError

DEFAULT_GROWTH = 1.01
"""Noise of the gradients with the count over the noise without it, by default."""

DEFAULT_RANGE = 1024.0
"""How far C may move from where it starts, up or down, by default."""


def default_count_noise_multiplier(noise_multiplier: float) -> float:
    """Returns the sigma_b that makes the gradients' noise 1 % larger."""
    factor = DEFAULT_GROWTH / math.sqrt(DEFAULT_GROWTH**2 - 1)
    return check_positive(noise_multiplier, "noise_multiplier") * factor


def _round_up(value: float) -> float:
    """Returns ``value`` enlarged by more than the rounding of three operations."""
    for _ in range(4):
        value = math.nextafter(value, math.inf)
    return value


@dataclass(frozen=True)
class JointNorm:
    """How a unit's gradient and its vote stand in one vector.

    Attributes:
        weight: Largest absolute value of a unit's last coordinate.
        norm: Largest L2 norm of a unit's whole vector, rounded up: the sensitivity.
    """

    weight: float
    norm: float


@dataclass(frozen=True)
class QuantileClipping:
    """How C follows a quantile. All public.

    Attributes:
        target: gamma, the share of units that are to lie within C.
        count_noise_multiplier: sigma_b, noise of the count over its sensitivity.
        clip_norm_min: C never falls below it.
        clip_norm_max: C never rises above it.
        learning_rate: eta, how far C moves (in its logarithm) a step.
    """

    target: float
    count_noise_multiplier: float
    clip_norm_min: float
    clip_norm_max: float
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        store(self, target=check_rate(self.target, "target"))
        if self.target == 1:
            raise PlanError("target is 1.", "Give target between 0 and 1.")
        names = ("count_noise_multiplier", "clip_norm_min", "clip_norm_max")
        for name in (*names, "learning_rate"):
            store(self, **{name: check_positive(getattr(self, name), name)})

    def check_start(self, clip_norm: float) -> None:
        """Refuses a first C outside the limits."""
        if not self.clip_norm_min <= clip_norm <= self.clip_norm_max:
            raise PlanError(
                f"clip_norm {clip_norm:g} is not between clip_norm_min "
                f"{self.clip_norm_min:g} and clip_norm_max {self.clip_norm_max:g}.",
                "C starts at clip_norm: give limits around it.",
            )

    def check_noise(self, noise_multiplier: float) -> None:
        """Refuses a count whose noise alone is not above that of the whole step."""
        if not self.count_noise_multiplier > noise_multiplier:
            least = default_count_noise_multiplier(noise_multiplier)
            raise PlanError(
                f"count_noise_multiplier is {self.count_noise_multiplier:g}, and the "
                f"step's own noise multiplier {noise_multiplier:g}: nothing would be "
                "left for the gradients.",
                f"Give more than {noise_multiplier:g}; {least:.4g} makes the noise of "
                "the gradients 1 % larger, and so does leaving it out.",
            )

    def joint(self, noise_multiplier: float, clip_norm: float) -> JointNorm:
        """Returns how a step with this C joins gradients and votes.

        A vote of at most 1 stands in the vector as at most
        w = C sigma / sqrt(sigma_b^2 - sigma^2).

        Args:
            noise_multiplier: sigma of the step's event.
            clip_norm: C of the step.

        Raises:
            PlanError: sigma_b is not above sigma, or w vanishes beside C.

        Guarantee:
            A unit with a gradient of norm at most C and a vote of at most 1 has a
            vector of norm at most ``norm``. So noise of deviation sigma * norm in
            every coordinate makes the whole release the event ``Gaussian(sigma)``:
            sigma_g * C on the gradients and sigma_b * w on the vote, with
            sigma_g^-2 + sigma_b^-2 = sigma^-2.
        """
        self.check_noise(noise_multiplier)
        sigma, sigma_b = noise_multiplier, self.count_noise_multiplier
        ratio = sigma / (math.sqrt(sigma_b - sigma) * math.sqrt(sigma_b + sigma))
        weight = check_positive(ratio * clip_norm, "the weight of the count")
        return JointNorm(weight, _round_up(math.hypot(clip_norm, weight)))

    def gradient_noise_multiplier(self, noise_multiplier: float) -> float:
        """Returns sigma_g = (sigma^-2 - sigma_b^-2)^(-1/2), rounded up.

        It is the noise of the gradients over C, when sigma is that of the event.
        """
        return _round_up(noise_multiplier * self.joint(noise_multiplier, 1.0).norm)

    def next_clip_norm(self, clip_norm: float, fraction: float) -> float:
        """Returns C exp(-eta (fraction - gamma)), within the limits.

        Args:
            clip_norm: C of the step.
            fraction: Noisy share of units within C, from the step's release. It need
                not lie between 0 and 1; a NaN leaves C as it is.
        """
        if math.isnan(fraction):
            return clip_norm
        limit = min(math.log(self.clip_norm_max) - math.log(self.clip_norm_min), 700.0)
        move = -self.learning_rate * (fraction - self.target)
        moved = clip_norm * math.exp(min(max(move, -limit), limit))
        return min(max(moved, self.clip_norm_min), self.clip_norm_max)
