"""Epsilon and delta of events, under add or remove of one unit.

Three accountants: ``pld`` (privacy loss distributions, what reports state), ``rdp``
(Renyi, a second opinion that is larger) and ``gdp`` (a central-limit approximation,
to look at only: it can be below the truth and may gate nothing). dp-accounting and
SciPy are imported inside the functions, so that importing this module stays cheap.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pft_ray.accounting.events import (
    Event,
    Leaves,
    NonPrivate,
    PoissonGaussian,
    PoissonMixture,
    check_positive,
    check_rate,
    count_leaves,
)
from pft_ray.accounting.loss_distribution import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_step_mu,
    pld_delta,
    pld_epsilon,
)
from pft_ray.accounting.renyi import renyi_delta, renyi_epsilon
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

Accountant = Literal["pld", "rdp", "gdp"]
Gate = Literal["pld", "rdp"]
CERTIFICATE_GRID = 1e-4
SEARCH_GRID = 1e-3

# Dense where the best order of epsilons from 0.1 to 20 lies.
RDP_ORDERS: tuple[float, ...] = (
    *(1 + k / 10 for k in range(1, 100)),
    *(float(k) for k in range(11, 65)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
)
# Rounding error of the computed divergence of one step.
_RDP_ROUNDING = 1e-14
# Below this (epsilon in the thousands) the series of the sampled Gaussian overflows.
_LEAST_NOISE = 0.01


def epsilon(
    event: Event,
    delta: float,
    *,
    accountant: Accountant = "pld",
    grid: float = CERTIFICATE_GRID,
) -> float:
    """Returns epsilon of ``event`` at ``delta``; infinite for a non-private event.

    Args:
        event: What is done to the data.
        delta: In (0, 1).
        accountant: ``pld``, ``rdp`` or ``gdp``.
        grid: Spacing of the loss grid of ``pld``: 1e-4 for a certificate, 1e-3 to
            search and to draw. It is coarsened in proportion above epsilon 5.

    Raises:
        PlanError: delta, grid or the accountant's name is out of range.

    Guarantee:
        Under ``pld`` and ``rdp`` the event is (epsilon, delta)-differentially
        private: discretisation, truncation and rounding only ever raise the result.
        Where no grid can hold the losses ``pld`` returns the Renyi bound.
    """
    return _epsilon(
        count_leaves(event),
        _check_delta(delta),
        accountant,
        check_positive(grid, "grid"),
    )


def delta(
    event: Event,
    epsilon: float,
    *,
    accountant: Accountant = "pld",
    grid: float = CERTIFICATE_GRID,
) -> float:
    """Returns delta of ``event`` at ``epsilon`` >= 0; at most 1.

    Raises:
        PlanError: epsilon, grid or the accountant's name is out of range.

    Guarantee:
        As for :func:`epsilon`.
    """
    target = 0.0 if epsilon == 0 else check_positive(epsilon, "epsilon")
    leaves = count_leaves(event)
    if _is_non_private(leaves):
        return 1.0
    match accountant:
        case "pld":
            bound = max(target, renyi_epsilon(leaves, 1e-6))
            exact = pld_delta(leaves, target, check_positive(grid, "grid"), bound)
            return min(exact, renyi_delta(leaves, target))
        case "rdp":
            if _has_mixture(leaves):
                return renyi_delta(leaves, target)
            return float(_rdp(leaves).get_delta(target))
        case "gdp":
            return gaussian_delta(_central_limit_mu(leaves), target)
        case _:
            raise _unknown(accountant)


def epsilon_by_accountant(event: Event, delta: float) -> dict[str, float]:
    """Returns the epsilons that a report states side by side, PLD and RDP."""
    return {
        "pld": epsilon(event, delta),
        "rdp": epsilon(event, delta, accountant="rdp"),
    }


def require_gate(accountant: str) -> Gate:
    """Returns ``accountant`` if a decision may rest on it.

    Raises:
        PlanError: It is ``gdp``, which may state less than was spent, or unknown.
    """
    if accountant == "gdp":
        raise PlanError(
            "The gdp accountant can understate epsilon, so nothing may rest on it.",
            "Use pld or rdp.",
        )
    if accountant == "pld":
        return "pld"
    if accountant == "rdp":
        return "rdp"
    raise _unknown(accountant)


@lru_cache(maxsize=512)
def _epsilon(leaves: Leaves, delta: float, accountant: str, grid: float) -> float:
    if _is_non_private(leaves):
        return math.inf
    match accountant:
        case "pld":
            bound = renyi_epsilon(leaves, delta)
            exact = min(pld_epsilon(leaves, delta, grid, bound), bound)
            if exact < bound:
                return exact
            return min(bound, _rdp_epsilon(leaves, delta))
        case "rdp":
            return _rdp_epsilon(leaves, delta)
        case "gdp":
            return gaussian_epsilon(_central_limit_mu(leaves), delta)
        case _:
            raise _unknown(accountant)


def _has_mixture(leaves: Leaves) -> bool:
    return any(isinstance(leaf, PoissonMixture) for leaf, _ in leaves)


def _rdp_epsilon(leaves: Leaves, delta: float) -> float:
    """By dp-accounting, which knows no mixtures: those are integrated here."""
    if _has_mixture(leaves):
        return renyi_epsilon(leaves, delta)
    return float(_rdp(leaves).get_epsilon(delta))


def _rdp(leaves: Leaves) -> Any:
    """Returns dp-accounting's Renyi accountant after the events."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(RDP_ORDERS)
    with _quiet_absl():
        for leaf, count in leaves:
            match leaf:
                case PoissonGaussian(noise_multiplier=sigma) if sigma < _LEAST_NOISE:
                    accountant.compose(dp.NonPrivateDpEvent())
                case PoissonGaussian(sample_rate=q, noise_multiplier=sigma):
                    noise = dp.GaussianDpEvent(sigma)
                    accountant.compose(dp.PoissonSampledDpEvent(q, noise), count)
                    # A rounding error below zero would be read as "no loss at all".
                    accountant.compose(dp.ZCDpEvent(rho=0.0, xi=_RDP_ROUNDING), count)
                case _:
                    mu = gaussian_step_mu(leaf)
                    accountant.compose(dp.ZCDpEvent(rho=0.5 * mu * mu), count)
    return accountant


@contextmanager
def _quiet_absl() -> Iterator[None]:
    """Drops the warnings about orders that do not converge: those are left out."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _central_limit_mu(leaves: Leaves) -> float:
    """Bu, Dong, Long and Su 2020 (arXiv:1911.11607): mu = q sqrt(T (e^(1/s^2) - 1))."""
    total = 0.0
    for leaf, count in leaves:
        mu = gaussian_step_mu(leaf)
        square = mu * mu
        if isinstance(leaf, PoissonGaussian):
            rate = leaf.sample_rate
            square = rate * rate * math.expm1(square) if square < 700 else math.inf
        elif isinstance(leaf, PoissonMixture):
            square = _mixture_square(leaf) if square < 700 else math.inf
        total += count * square
    return math.sqrt(total)


def _mixture_square(leaf: PoissonMixture) -> float:
    """Chi-square divergence: E exp(J K / sigma^2) - 1 for two independent counts."""
    scale = leaf.noise_multiplier**2
    return math.fsum(
        one * other * math.expm1(j * k / scale)
        for j, one in enumerate(leaf.weights)
        for k, other in enumerate(leaf.weights)
    )


def _is_non_private(leaves: Leaves) -> bool:
    return any(isinstance(leaf, NonPrivate) for leaf, _ in leaves)


def _check_delta(delta: float) -> float:
    if check_rate(delta, "delta") == 1:
        raise PlanError("delta is 1.", "Give delta below 1/n.")
    return float(delta)


def _unknown(accountant: str) -> PlanError:
    return PlanError(f"Unknown accountant {accountant!r}.", "Use pld, rdp or gdp.")
