"""One private step: the six hops from a batch to a parameter update.

    sampled units -> per-record gradients -> clip -> ClippedSum
    -> privatise -> NoisyShare -> all-reduce -> PrivateGrad -> optimiser

Each hop has its own type, so the hops cannot be taken in a wrong order: the
collective takes only noisy shares, the optimiser only private gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pft_ray.accounting.tolerance import needed_shares
from pft_ray.errors import PlanError, VoidStepError
from pft_ray.mechanisms import ShareHeader, check_headers
from pft_ray.training.clip_norms import ClipNorms
from pft_ray.training.owner_sums import clipped_by_owner
from pft_ray.training.types import ClippedSum, NoisyShare, PrivateGrad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pft_ray.accounting.plan import Plan
    from pft_ray.accounting.quantile import JointNorm
    from pft_ray.mechanisms import SampledGaussian


class Collective(Protocol):
    """What a step needs of the network. One process passes :class:`Alone`."""

    def gather(self, words: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Returns the words of all ranks, in rank order."""

    def reduce(self, share: NoisyShare) -> torch.Tensor:
        """Returns the sum of all ranks' noisy shares, fp32, shape (P,)."""


class Alone:
    """The collective of a single process: the identity."""

    def gather(self, words: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Returns the own words."""
        return [words]

    def reduce(self, share: NoisyShare) -> torch.Tensor:
        """Returns the own share."""
        return share.vector


class Work(Protocol):
    """What a step needs of the local model and data."""

    def clipped_sum(self, positions: NDArray[np.int64], clip_norm: float) -> ClippedSum:
        """Returns the sum of the units' clipped contributions."""

    def apply(self, grad: PrivateGrad) -> None:
        """Makes one optimiser step."""


@dataclass(frozen=True)
class StepKeys:
    """The secrets and the share of noise of one step on one rank.

    Attributes:
        attempt: Number of the attempt.
        step: Planned step, counted from 0.
        sample_key: Equal on all ranks; empty where parts have keys of their own.
        shares: (share index, numerator) pairs of this rank.
        noise_keys: One key for each share.
        part_keys: (number, sampling key) pairs of the owners that this rank serves, or
            of the independent workers that it plays, and of no other.
        num_ranks: Ranks of the attempt's roster.
    """

    attempt: int
    step: int
    sample_key: bytes
    shares: tuple[tuple[int, int], ...]
    noise_keys: tuple[bytes, ...]
    part_keys: tuple[tuple[int, bytes], ...] = ()
    num_ranks: int = 1

    def __repr__(self) -> str:
        return f"StepKeys(attempt={self.attempt}, step={self.step}, keys hidden)"


def privatise(
    clipped: ClippedSum,
    mechanism: SampledGaussian,
    keys: StepKeys,
    phase: int,
    joint: JointNorm | None = None,
) -> NoisyShare:
    """Adds this rank's noise shares to its clipped sum, in fp64, and rounds to fp32.

    Args:
        clipped: Sum of this rank's clipped contributions, shape (P,).
        mechanism: The plan's mechanism.
        keys: This step's keys and shares.
        phase: Index of the plan's phase.
        joint: How the balance of votes becomes one more coordinate; None: not at all.

    Raises:
        VoidStepError: There is no share, so no noise.

    Guarantee:
        The result carries noise of variance sum(numerators)/V * (sigma S)**2 in
        every coordinate. S is C, or the norm of a unit's gradient and vote together.
        Only the sum over all ranks carries the whole noise; a single share is for
        the collective alone.
    """
    total = clipped.vector.detach().numpy()
    size, sensitivity = total.shape[0], clipped.clip_norm
    if joint is not None:
        size, sensitivity = size + 1, joint.norm
    shares = [
        mechanism.share(key, size, sensitivity, numerator)
        for (_, numerator), key in zip(keys.shares, keys.noise_keys, strict=True)
    ]
    if not shares:
        raise VoidStepError("This rank holds no noise share.")
    vote = 0.0 if joint is None else joint.weight * _counted(clipped)
    vector = _noisy(total, shares, size, vote)
    return NoisyShare(vector, phase, clipped.clip_norm, counted=joint is not None)


def _noisy(
    total: NDArray[np.float64],
    shares: list[Iterator[NDArray[np.float64]]],
    size: int,
    vote: float,
) -> torch.Tensor:
    """Returns (total, vote) plus all shares, piece by piece in fp64, as fp32."""
    out = np.empty(size, dtype=np.float32)
    start = 0
    for value, *others in zip(*shares, strict=True):
        stop = start + len(value)
        known = total[start:stop]
        value[: len(known)] += known  # the piece's own memory: nothing is copied
        if stop > len(total):
            value[-1] += vote
        for other in others:
            value += other
        out[start:stop] = value
        start = stop
    return torch.from_numpy(out)


def _counted(clipped: ClippedSum) -> float:
    if clipped.balance is None:
        msg = "the work counted no votes on the clip norm"
        raise ValueError(msg)
    return clipped.balance


def finish(reduced: torch.Tensor, plan: Plan) -> PrivateGrad:
    """Divides the noisy sum by the public expected batch size q*n."""
    return PrivateGrad(reduced / plan.expected_batch_size)


def take_fraction(
    reduced: torch.Tensor, joint: JointNorm, plan: Plan
) -> tuple[torch.Tensor, float]:
    """Returns the noisy sum of gradients, and the noisy share of units within C.

    The share is 1/2 + balance / (2 q n): like the gradients it is divided by the
    expected batch size, so it may lie outside [0, 1].

    Args:
        reduced: Sum of all ranks' shares, shape (P + 1,).
        joint: What the shares were made with.
        plan: The run's plan.
    """
    balance = float(reduced[-1]) / joint.weight
    return reduced[:-1], 0.5 + balance / (2 * plan.expected_batch_size)


@dataclass
class PrivateStep:
    """Makes the steps of one rank; holds what does not change between them.

    Attributes:
        plan: The run's plan.
        mechanism: Built from the plan.
        work: Local model and units.
        unit_digests: uint8 (n, 16) of this rank's units.
        collective: Gathers headers and reduces shares.
        clip_norms: C of each phase now; part of the run's state.
    """

    plan: Plan
    mechanism: SampledGaussian
    work: Work
    unit_digests: NDArray[np.uint8]
    collective: Collective
    last: tuple[int, int] = (-1, -1)
    unit_owners: NDArray[np.int64] | None = None
    clip_norms: ClipNorms = field(init=False)

    def __post_init__(self) -> None:
        self.clip_norms = ClipNorms(self.plan.phases)

    def run(self, keys: StepKeys) -> None:
        """Makes one step: every rank calls it, also with nothing of its own.

        Raises:
            VoidStepError: The step was seen before, or the headers of the ranks do
                not check. It stays charged; nothing was drawn or applied.

        Guarantee:
            The update depends on the data only through one ``PoissonGaussian``
            release at the plan's sample rate and noise multiplier. Noise is drawn
            once, after the clipped sum is final and after every rank's header was
            checked; each key is used once. The next C of an adaptive phase is a
            function of that release alone.
        """
        if (keys.attempt, keys.step) <= self.last:
            raise VoidStepError(
                f"Step {keys.step} of attempt {keys.attempt} was asked for again."
            )
        self.last = (keys.attempt, keys.step)
        index, phase = self.plan.phase_at(keys.step)
        clipped = self._clipped_sum(keys, self.clip_norms.now[index])
        self._check(keys, index, clipped.clip_norm)
        joint = None
        if phase.quantile is not None:
            sigma = self.plan.noise_multiplier
            joint = phase.quantile.joint(sigma, clipped.clip_norm)
        share = privatise(clipped, self.mechanism, keys, index, joint)
        reduced = self.collective.reduce(share)
        fraction = None
        if joint is not None:
            reduced, fraction = take_fraction(reduced, joint, self.plan)
        self.work.apply(finish(reduced, self.plan))
        self.clip_norms.made(index, fraction)

    def _clipped_sum(self, keys: StepKeys, clip_norm: float) -> ClippedSum:
        owners, digests = self.plan.owners, self.unit_digests
        if self.plan.independent_workers > 1:
            return self._independent_sums(keys, clip_norm)
        if owners is None:
            positions = self.mechanism.sample(keys.sample_key, digests)
            return self.work.clipped_sum(positions, clip_norm)
        numbers = self.unit_owners
        if numbers is None or len(numbers) != len(digests):
            raise PlanError("The plan has owners, and this rank's units have none.")
        positions = self.mechanism.sample_owners(keys.part_keys, digests, numbers)
        return clipped_by_owner(self.work, positions, clip_norm, numbers, owners)

    def _independent_sums(self, keys: StepKeys, clip_norm: float) -> ClippedSum:
        """Adds what each independent worker that this rank plays draws by itself.

        Each of them has a whole share of noise, so what is reduced is a sum of
        releases, one for each worker.
        """
        vector = None
        for _, key in keys.part_keys:
            positions = self.mechanism.sample(key, self.unit_digests)
            part = self.work.clipped_sum(positions, clip_norm).vector
            vector = part if vector is None else vector + part
        if vector is None:
            raise VoidStepError("This rank plays no independent worker.")
        return ClippedSum(vector, clip_norm)

    def _check(self, keys: StepKeys, phase: int, clip_norm: float) -> None:
        header = ShareHeader(
            keys.attempt,
            keys.step,
            phase,
            clip_norm,
            self.plan.digest,
            keys.shares,
        )
        own = header.pack(self.plan.num_shares)
        missing = self.plan.tolerate_missing
        headers = self.collective.gather(own)
        if missing and len(headers) != keys.num_ranks:
            raise VoidStepError(
                f"{len(headers)} of the attempt's {keys.num_ranks} ranks are there."
            )
        check_headers(headers, own, needed_shares(self.plan), num_missing=missing)
