"""How the clip norm of a phase follows a quantile, as a job file says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pft_ray.accounting.quantile import (
    DEFAULT_RANGE,
    QuantileClipping,
    default_count_noise_multiplier,
)
from pft_ray.config.base import Positive, Section


class QuantileSection(Section):
    """Which share of the units is to lie within C, and how C gets there."""

    target: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.5, description="Share of units that are to lie within C, gamma."
    )
    learning_rate: Positive = Field(
        0.2, description="How far log C moves a step, by how wrong the share is, eta."
    )
    count_noise_multiplier: Annotated[float, Field(ge=0.01, le=1e6)] | None = Field(
        None,
        description="Noise of the count, sigma_b, above the step's own; default: what "
        "makes the noise of the gradients 1 % larger.",
    )
    clip_norm_min: Positive | None = Field(
        None, description="C stays above it; default: clip_norm / 1024."
    )
    clip_norm_max: Positive | None = Field(
        None, description="C stays below it; default: clip_norm * 1024."
    )

    def resolved(self, clip_norm: float, noise_multiplier: float) -> QuantileClipping:
        """Returns the section as the plan holds it, with every default filled in.

        Args:
            clip_norm: The phase's first C.
            noise_multiplier: sigma of a step's event.

        Raises:
            PlanError: A number is out of range.
        """
        sigma_b = self.count_noise_multiplier
        if sigma_b is None:
            sigma_b = default_count_noise_multiplier(noise_multiplier)
        return QuantileClipping(
            target=self.target,
            count_noise_multiplier=sigma_b,
            clip_norm_min=self.clip_norm_min or clip_norm / DEFAULT_RANGE,
            clip_norm_max=self.clip_norm_max or clip_norm * DEFAULT_RANGE,
            learning_rate=self.learning_rate,
        )
