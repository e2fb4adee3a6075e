"""The mechanism of a training step: sampler, noise shares and event in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pft_ray.accounting.events import PoissonGaussian
from pft_ray.mechanisms.gaussian import noise_pieces, share_std
from pft_ray.mechanisms.sampling import poisson_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pft_ray.accounting.plan import Plan


@dataclass(frozen=True)
class SampledGaussian:
    """Poisson sampling and Gaussian noise that cannot disagree with their event.

    Attributes:
        sample_rate: Probability of a unit to be in a step.
        noise_multiplier: Noise deviation over clip norm, all shares together.
        num_shares: V, the shares that carry the noise.
    """

    sample_rate: float
    noise_multiplier: float
    num_shares: int

    @classmethod
    def from_plan(cls, plan: Plan) -> SampledGaussian:
        """Returns the mechanism of the plan's steps."""
        return cls(plan.sample_rate, plan.noise_multiplier, plan.num_shares)

    @property
    def event(self) -> PoissonGaussian:
        """The event of one step when all shares are there."""
        return PoissonGaussian(self.sample_rate, self.noise_multiplier)

    def sample(
        self, step_key: bytes, unit_digests: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Returns the positions of the units in the step whose key is given."""
        return poisson_sample(step_key, unit_digests, self.sample_rate)

    def share(
        self, noise_key: bytes, size: int, clip_norm: float, numerator: int
    ) -> Iterator[NDArray[np.float64]]:
        """Yields ``size`` coordinates of the share numerator / num_shares, in pieces.

        Every piece is overwritten by the next; all shares of a step are cut alike.
        """
        std = share_std(self.noise_multiplier, clip_norm, numerator, self.num_shares)
        return noise_pieces(noise_key, size, std)
