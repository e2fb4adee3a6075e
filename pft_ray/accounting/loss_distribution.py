"""Privacy loss distributions (PLD) of events, by dp-accounting's grids.

Every approximation here is pessimistic: "connect the dots" puts the losses on a grid
so that every delta grows (Doroshenko et al. 2022, arXiv:2207.04380), cut-off tails
count as infinite loss, and what floating point may lose is added to delta.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.events import (
    DiscreteGaussian,
    Gaussian,
    Leaf,
    Leaves,
    PoissonGaussian,
    PoissonMixture,
)
from pft_ray.accounting.mixtures import mixture_distribution

if TYPE_CHECKING:
    from collections.abc import Iterable

# Above these no grid is built; the caller has the Renyi bound.
_MAX_COUNT = 10**8
_MAX_DISCRETE_SIGMA = 2e5
_MAX_EPSILON = 1e4
_MAX_MU = 1e5
# A grid has at most about this many points below epsilon, and one event's losses
# at most this many.
_POINTS_TO_EPSILON = 5e4
_POINTS_OF_EVENT = 1e6
_STAGE = 50_000
# Noise is cut off where less than exp(-50) of its mass remains.
_TAIL = 10.0


def pld_epsilon(leaves: Leaves, delta: float, grid: float, bound: float) -> float:
    """Returns epsilon by PLD, or infinity where no grid can hold the losses.

    Args:
        leaves: Plain events and how often each happens; none non-private.
        delta: In (0, 1).
        grid: Spacing of the loss grid, coarsened when ``bound`` or the losses of one
            event are large.
        bound: Any upper bound on epsilon.
    """
    if _is_gaussian(leaves):
        return gaussian_epsilon(_gaussian_mu(leaves), delta)
    if not _fits(leaves, bound):
        return math.inf
    loss = _composed(leaves, _spacing(leaves, grid, bound))
    left = delta - _lost(leaves)
    if left <= 0 or not loss.get_delta_for_epsilon(-math.inf) > 1 - 1e-9:
        return math.inf
    return float(loss.get_epsilon_for_delta(left))


def pld_delta(leaves: Leaves, epsilon: float, grid: float, bound: float) -> float:
    """Returns delta by PLD, or 1 where no grid can hold the losses.

    Arguments as for :func:`pld_epsilon`; ``bound`` says how wide the losses are.
    """
    if _is_gaussian(leaves):
        return gaussian_delta(_gaussian_mu(leaves), epsilon)
    if not _fits(leaves, bound):
        return 1.0
    loss = _composed(leaves, _spacing(leaves, grid, bound))
    if not loss.get_delta_for_epsilon(-math.inf) > 1 - 1e-9:
        return 1.0
    return min(1.0, float(loss.get_delta_for_epsilon(epsilon)) + _lost(leaves))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Returns the exact epsilon of the Gaussian mechanism, rounded up by 1e-10.

    Args:
        mu: Sensitivity over standard deviation.
        delta: In (0, 1).

    Balle and Wang 2018 (arXiv:1805.06530), theorem 8.
    """
    if mu == 0:
        return 0.0
    if mu > _MAX_MU:
        return math.inf
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(1 / mu, delta)) * (1 + 1e-12) + 1e-12


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Returns the exact delta of the Gaussian mechanism (see gaussian_epsilon)."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    from scipy.special import log_ndtr

    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    if lower >= upper:
        return 0.0
    return min(1.0, math.exp(upper) * -math.expm1(lower - upper) * (1 + 1e-9))


def gaussian_step_mu(leaf: Leaf) -> float:
    """Returns sensitivity over deviation of an unsampled (discrete) Gaussian."""
    match leaf:
        case Gaussian(noise_multiplier=sigma):
            return 1 / sigma
        case DiscreteGaussian(sigma=sigma, sensitivity=sensitivity):
            return sensitivity / sigma
        case PoissonGaussian(noise_multiplier=sigma):
            return 1 / sigma
        case PoissonMixture(noise_multiplier=sigma, max_records_per_user=records):
            return records / sigma
        case _:
            return math.inf


def _is_gaussian(leaves: Leaves) -> bool:
    return all(isinstance(leaf, Gaussian) for leaf, _ in leaves)


def _gaussian_mu(leaves: Iterable[tuple[Leaf, int]]) -> float:
    """Composed Gaussians are one Gaussian: mu squared adds up."""
    mus = [(gaussian_step_mu(leaf), n) for leaf, n in leaves]
    return math.sqrt(math.fsum(n * mu * mu for mu, n in mus))


def _fits(leaves: Leaves, bound: float) -> bool:
    small = all(
        leaf.sigma <= _MAX_DISCRETE_SIGMA
        for leaf, _ in leaves
        if isinstance(leaf, DiscreteGaussian)
    )
    widest = max(_widest_loss(leaf) for leaf, _ in leaves)
    count = sum(n for _, n in leaves)
    return small and count <= _MAX_COUNT and max(bound, widest) <= _MAX_EPSILON


def _widest_loss(leaf: Leaf) -> float:
    mu = gaussian_step_mu(leaf)
    return _TAIL * mu + mu * mu


def _spacing(leaves: Leaves, grid: float, bound: float) -> float:
    widest = max(_widest_loss(leaf) for leaf, _ in leaves)
    most = max(
        leaf.max_records_per_user if isinstance(leaf, PoissonMixture) else 1
        for leaf, _ in leaves
    )
    points = _POINTS_OF_EVENT / most
    return max(grid, bound / _POINTS_TO_EPSILON, widest / points)


def _lost(leaves: Leaves) -> float:
    """Bounds what floating point and the FFT may take from delta."""
    return 1e-13 + 1e-16 * sum(n for _, n in leaves)


def _composed(leaves: Leaves, grid: float) -> Any:
    gaussians = [(leaf, n) for leaf, n in leaves if isinstance(leaf, Gaussian)]
    parts = [
        _repeated(step_distribution(leaf, grid), n)
        for leaf, n in leaves
        if not isinstance(leaf, Gaussian)
    ]
    if gaussians:
        merged = Gaussian(1 / _gaussian_mu(gaussians))
        parts.append(step_distribution(merged, grid))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


def _repeated(loss: Any, count: int) -> Any:
    """Composes ``loss`` with itself; in two stages when the count is very large.

    dp-accounting raises the number of losses to the power of the count, as an exact
    integer, before it looks whether the result is small.
    """
    if count <= _STAGE:
        return loss.self_compose(count)
    stages, rest = divmod(count, _STAGE)
    total = loss.self_compose(_STAGE).self_compose(stages)
    return total.compose(loss.self_compose(rest)) if rest else total


def step_distribution(leaf: Leaf, grid: float) -> Any:
    """Returns dp-accounting's ``PrivacyLossDistribution`` of one plain event."""
    from dp_accounting.pld import privacy_loss_distribution as distributions

    match leaf:
        case Gaussian(noise_multiplier=sigma):
            return distributions.from_gaussian_mechanism(
                sigma, value_discretization_interval=grid
            )
        case PoissonGaussian(sample_rate=q, noise_multiplier=sigma):
            return distributions.from_gaussian_mechanism(
                sigma, value_discretization_interval=grid, sampling_prob=q
            )
        case DiscreteGaussian(sigma=sigma, sensitivity=sensitivity):
            return _discrete_gaussian(sigma, sensitivity, grid)
        case PoissonMixture():
            return mixture_distribution(leaf, grid)
        case _:
            msg = f"no loss distribution for {leaf!r}"
            raise TypeError(msg)


def _discrete_gaussian(sigma: float, sensitivity: int, grid: float) -> Any:
    """Connects the dots of the discrete Gaussian at the grid points its losses touch.

    dp-accounting can do the same one noise value after the other; with a
    sensitivity of 1024 that takes seconds instead of milliseconds.
    """
    import numpy as np
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss

    cut = max(math.ceil(11.6 * sigma), sensitivity)
    mechanism = DiscreteGaussianPrivacyLoss(sigma, sensitivity, cut)
    noise = np.arange(-cut, cut - sensitivity + 1)
    losses = -sensitivity * (0.5 * sensitivity + noise) / sigma**2 / grid
    points = np.unique(np.concatenate([np.floor(losses), np.ceil(losses)]))
    points = points.astype(np.int64)
    # The noise values whose loss is at least epsilon are those up to a last one.
    epsilons = points * grid
    last = np.floor(-0.5 * sensitivity - epsilons * (sigma * sigma / sensitivity))
    last = np.clip(last, -cut - 1, cut - sensitivity)
    lower = np.exp(epsilons + mechanism.mu_lower_log_cdf(last))
    deltas = np.clip(mechanism.mu_upper_cdf(last) - lower, 0.0, 1.0)
    # A gap of more than 709 between two losses overflows to infinity, as it should.
    with np.errstate(over="ignore"):
        masses = pld_pmf.create_pmf_pessimistic_connect_dots(grid, points, deltas)
    return PrivacyLossDistribution(masses)
