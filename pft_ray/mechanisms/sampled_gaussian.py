"""The mechanism of a training step: sampler, noise shares and event in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.accounting.events import PoissonGaussian
from pft_ray.accounting.tolerance import needed_shares
from pft_ray.errors import PlanError
from pft_ray.mechanisms.gaussian import noise_pieces, share_std
from pft_ray.mechanisms.sampling import poisson_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pft_ray.accounting.owners import Owners
    from pft_ray.accounting.plan import Plan


@dataclass(frozen=True)
class SampledGaussian:
    """Poisson sampling and Gaussian noise that cannot disagree with their event.

    Attributes:
        sample_rate: Probability of a unit to be in a step.
        noise_multiplier: Noise deviation over clip norm, all shares together.
        num_shares: Shares that carry the noise: V, less those that may be absent.
        owners: Owners with rates or clip norms of their own, or None.
    """

    sample_rate: float
    noise_multiplier: float
    num_shares: int
    owners: Owners | None = None

    @classmethod
    def from_plan(cls, plan: Plan) -> SampledGaussian:
        """Returns the mechanism of the plan's steps."""
        # An independent worker has the whole noise of its own release.
        num_shares = needed_shares(plan) if plan.independent_workers == 1 else 1
        return cls(plan.sample_rate, plan.noise_multiplier, num_shares, plan.owners)

    @property
    def event(self) -> PoissonGaussian:
        """The event of one step when all shares are there; of the worst owner."""
        if self.owners is not None:
            return self.owners.step_event(self.owners.worst(), self.noise_multiplier)
        return PoissonGaussian(self.sample_rate, self.noise_multiplier)

    def sample(
        self, step_key: bytes, unit_digests: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Returns the positions of the units in the step whose key is given."""
        if self.owners is not None:
            raise PlanError("The units have owners.", "Draw them by sample_owners.")
        return poisson_sample(step_key, unit_digests, self.sample_rate)

    def sample_owners(
        self,
        owner_keys: Sequence[tuple[int, bytes]],
        unit_digests: NDArray[np.uint8],
        unit_owners: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Returns the positions of the units in a step, each drawn at its owner's q_i.

        Args:
            owner_keys: (owner, the step's key of its units) pairs of this rank.
            unit_digests: uint8 (n, 16), distinct.
            unit_owners: int64 (n,), number of the owner of each unit.

        Raises:
            PlanError: The plan has no owners, or an owner's key is missing here.

        Guarantee:
            A unit of owner i is in with probability at most q_i, independently, and
            whether it is depends on its owner's key of the step and its digest alone.
            Who has only other owners' keys cannot tell whether it is in.
        """
        keys = dict(owner_keys)
        present = np.unique(unit_owners).tolist()
        if self.owners is None or not keys.keys() >= set(present):
            raise PlanError("This rank holds units of owners that it has no key of.")
        drawn = [np.zeros(0, dtype=np.int64)]
        for number in present:
            places = np.flatnonzero(unit_owners == number)
            rate = self.owners.members[number].sample_rate
            drawn.append(
                places[poisson_sample(keys[number], unit_digests[places], rate)]
            )
        return np.sort(np.concatenate(drawn))

    def share(
        self, noise_key: bytes, size: int, clip_norm: float, numerator: int
    ) -> Iterator[NDArray[np.float64]]:
        """Yields ``size`` coordinates of the share numerator / num_shares, in pieces.

        Every piece is overwritten by the next; all shares of a step are cut alike.
        """
        std = share_std(self.noise_multiplier, clip_norm, numerator, self.num_shares)
        return noise_pieces(noise_key, size, std)
