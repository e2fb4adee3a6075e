"""Renyi divergence of events at integer orders, rounded up; plain arithmetic.

Used where a cheap and safe bound is wanted: brackets, grids and filters.
"""

from __future__ import annotations

import math
from functools import lru_cache

from pft_ray.accounting.events import (
    DiscreteGaussian,
    Gaussian,
    Leaf,
    Leaves,
    PoissonGaussian,
    PoissonMixture,
)

_WIDE = (40, 48, 64, 96, 128, 192, 256, 512, 1024)
ORDERS: tuple[int, ...] = (*range(2, 33), *_WIDE)
# The logarithm of a sum of at most 1025 terms errs by less than this, relative
# to 1 + its value.
_ROUNDING = 1e-13
# Values that an integral of a mixture may take; else it is given up.
_MOST_POINTS = 4 * 10**5


def _sampled_gaussian(sample_rate: float, noise_multiplier: float, order: int) -> float:
    """Divergence of the sampled Gaussian at an integer order.

    Mironov, Talwar and Zhang 2019 (arXiv:1908.10530), section 3.3: the moment is
    sum_k binom(order, k) (1 - q)^(order - k) q^k exp((k^2 - k) / (2 sigma^2)).
    """
    log_q, log_rest = math.log(sample_rate), math.log1p(-sample_rate)
    inverse = 1 / noise_multiplier
    top = math.lgamma(order + 1)
    terms = [
        top
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * log_q
        + (order - k) * log_rest
        + 0.5 * (k * inverse) * ((k - 1) * inverse)
        for k in range(order + 1)
    ]
    largest = max(terms)
    if math.isinf(largest):
        return math.inf
    log_moment = largest + math.log(math.fsum(math.exp(t - largest) for t in terms))
    return (max(log_moment, 0.0) + _ROUNDING * (1 + log_moment)) / (order - 1)


def _mixture(leaf: PoissonMixture, order: int) -> float:
    """Divergence of a mixture of Gaussians at an integer order; both directions.

    P = sum_j w_j N(j, sigma^2) against Q = N(0, sigma^2). The moments are integrals of
    functions analytic within pi sigma^2 of the real line that vanish at both ends: the
    trapezoid rule errs by exp(-100) on this step. Infinite where it takes too many.
    """
    import numpy as np
    from scipy.special import logsumexp

    sigma, most = leaf.noise_multiplier, leaf.max_records_per_user
    # Forward mass lies up to order * most, backward mass down to -(order - 1) * most.
    low, high = -(order * most + 12 * sigma), order * most + 12 * sigma
    num_points = int((high - low) / (sigma * min(1.0, sigma)) * 8) + 2
    if num_points * (most + 1) > _MOST_POINTS:
        return math.inf
    x, step = np.linspace(low, high, num_points, retstep=True)
    shifts = np.arange(most + 1)[:, None]
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(leaf.weights))[:, None]
    with np.errstate(over="ignore"):  # of terms that are nothing beside the largest
        terms = log_weights + (shifts * x - shifts**2 / 2) / sigma**2
        ratio = logsumexp(terms, axis=0)
        base = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
        moment = max(
            float(logsumexp(base + order * ratio)),
            float(logsumexp(base + (1 - order) * ratio)),
        ) + math.log(float(step))
    return (max(moment, 0.0) + 1e-10 * (1 + abs(moment))) / (order - 1)


@lru_cache(maxsize=4096)
def _leaf_divergence(leaf: Leaf, order: int) -> float:
    match leaf:
        case Gaussian(noise_multiplier=sigma):
            return 0.5 * order * (1 / sigma) * (1 / sigma)
        case DiscreteGaussian(sigma=sigma, sensitivity=sensitivity):
            # Canonne, Kamath and Steinke 2020, theorem 4: rho = s^2 / (2 sigma^2).
            ratio = sensitivity / sigma
            return 0.5 * order * ratio * ratio
        case PoissonGaussian(sample_rate=q, noise_multiplier=sigma):
            return _sampled_gaussian(q, sigma, order)
        case PoissonMixture():
            return _mixture(leaf, order)
        case _:
            return math.inf


def renyi_divergence(leaves: Leaves, order: int) -> float:
    """Returns an upper bound on the Renyi divergence at an integer order >= 2.

    Relation: add or remove one unit; the larger of the two directions. Infinite when
    one of the events is not private.
    """
    total = math.fsum(count * _leaf_divergence(leaf, order) for leaf, count in leaves)
    return total * (1 + 1e-12)


def conversion(order: float, delta: float) -> float:
    """Returns what epsilon adds to the divergence at ``order``; may be negative.

    epsilon = divergence + ln(1 - 1/order) - ln(delta * order) / (order - 1)
    (Canonne, Kamath and Steinke 2020, proposition 12).
    """
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def renyi_epsilon(leaves: Leaves, delta: float) -> float:
    """Returns a quick upper bound on epsilon: the best of the integer orders."""
    best = min(renyi_divergence(leaves, a) + conversion(a, delta) for a in ORDERS)
    return max(best, 0.0)


def renyi_delta(leaves: Leaves, epsilon: float) -> float:
    """Returns a quick upper bound on delta, by the same conversion."""
    exponents = (
        (a - 1) * (renyi_divergence(leaves, a) - epsilon + math.log1p(-1 / a))
        - math.log(a)
        for a in ORDERS
    )
    return math.exp(min(0.0, *exponents))
