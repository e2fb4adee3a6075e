"""From the epsilons of owners to one noise, and to a rate or a clip norm for each.

The equations of individualised DP-SGD (arXiv:2303.17046), with epsilon(q, sigma) the
price of T_max steps. By ``sample``: epsilon(q_i, sigma) = epsilon_i for one sigma, such
that sum n_i q_i = B. By ``scale``: epsilon(q, sigma_i) = epsilon_i at one q, then sigma
= n / sum(n_i / sigma_i) and C_i = C sigma / sigma_i, so that the mean C_i is C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.accountants import (
    CERTIFICATE_GRID,
    SEARCH_GRID,
    Gate,
    epsilon,
    require_gate,
)
from pft_ray.accounting.calibration import (
    calibrate_noise_multiplier,
    renyi_scale,
    round_up,
)
from pft_ray.accounting.events import (
    PoissonGaussian,
    Repeat,
    check_count,
    check_positive,
    check_rate,
)
from pft_ray.accounting.owners import (
    Owner,
    OwnerMethod,
    Owners,
    noise_against_colluders,
)
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.accounting.plan import Plan

_MARGIN = 5e-5  # what is aimed below the target, in ln epsilon
_TIGHT = 1e-3
_PROBE = 0.01
_NEAR = 0.3  # of the aim, in ln epsilon: slopes taken there are kept
_LARGEST_MOVE = 0.7
_MOST_ROUNDS = 30
_LARGEST_SIGMA = 1e6


@dataclass(frozen=True)
class OwnerTarget:
    """What an owner declares: its name, its n_i and its epsilon_i."""

    name: str
    size: int
    epsilon: float

    def __post_init__(self) -> None:
        check_count(self.size, f"size of owner {self.name!r}")
        check_positive(self.epsilon, f"epsilon of owner {self.name!r}")


def individualise(
    targets: Sequence[OwnerTarget],
    *,
    method: OwnerMethod,
    batch_size: float,
    delta: float,
    num_steps: int,
    accountant: Gate = "pld",
) -> tuple[Owners, float]:
    """Finds noise, rates and clip norms that give every owner its own epsilon.

    Args:
        targets: What the owners declare.
        method: ``sample`` or ``scale``.
        batch_size: Expected units a step of all owners together, at most all.
        delta: Of every owner, in (0, 1).
        num_steps: T_max, the fault reserve included.
        accountant: ``pld`` or ``rdp``.

    Returns:
        The owners with their q_i and C_i / C, and sigma, the noise deviation of the
        sum over C.

    Raises:
        PlanError: A number is out of range, or no noise reaches the targets.

    Guarantee:
        For every owner i, ``num_steps`` repetitions of its step event cost at most
        epsilon_i by the accountant. The sum of q_i n_i is the batch size, and by scale
        the mean of C_i over the declared units is C, to rounding.
    """
    gate = require_gate(accountant)
    check_rate(delta, "delta")
    size = sum(target.size for target in targets)
    if not 0 < batch_size <= size:
        raise PlanError(
            f"The batch size is {batch_size:g} for {size} units of all owners.",
            "Give an expected batch above 0 and of at most all units.",
        )
    price = _Price(delta, check_count(num_steps, "num_steps"), gate)
    if method == "scale":
        owners, sigma = _scaled(targets, batch_size / size, price)
    else:
        owners, sigma = _sampled(targets, batch_size, price)
    for number, owner in enumerate(owners.members):
        spent = price.of(owners.step_event(number, sigma))
        if spent > owner.epsilon:
            raise PlanError(
                f"Owner {owner.name!r} would lose epsilon {spent:.6g} of "
                f"{owner.epsilon:g}.",
                "Change the epsilons or the batch size a little.",
            )
    return owners, sigma


def owner_rows(
    plan: Plan, *, num_workers: int, num_colluding: int
) -> list[dict[str, Any]]:
    """Returns what the plan of each owner says, as JSON.

    ``epsilon`` holds against everyone who sees what the run releases.
    ``epsilon_against_colluders`` holds against ``num_colluding`` other owners, the
    worst ones, who subtract the noise shares of their own workers: the noise variance
    that counts is the sum of the shares of all others. What they know of their own
    units is no help to them, since epsilon holds whatever the other units are. It is
    None where nothing is hidden from them.
    """
    owners = plan.owners
    if owners is None:
        return []
    rows = []
    for number, owner in enumerate(owners.members):
        share = noise_against_colluders(
            number,
            num_owners=len(owners.members),
            num_workers=num_workers,
            num_shares=plan.num_shares,
            num_colluding=num_colluding,
            num_missing=plan.tolerate_missing,
        )
        against = math.inf
        if share > 0:
            step = owners.step_event(number, plan.noise_multiplier, share)
            against = epsilon(Repeat(step, plan.num_steps_max), plan.delta)
        rows.append(
            {
                "name": owner.name,
                "size": owner.size,
                "epsilon_declared": owner.epsilon,
                "epsilon": epsilon(plan.owner_event(number), plan.delta),
                "delta": plan.delta,
                "epsilon_against_colluders": against if against < math.inf else None,
                "sample_rate": owner.sample_rate,
                "clip_norms": [p.clip_norm * owner.clip_scale for p in plan.phases],
                "noise_multiplier": owners.noise_multiplier(
                    number, plan.noise_multiplier
                ),
            }
        )
    return rows


@dataclass(frozen=True)
class _Price:
    """Epsilon of T_max steps, on the grid of certificates or one to search on."""

    delta: float
    num_steps: int
    accountant: Gate

    def of(self, step: PoissonGaussian, grid: float = CERTIFICATE_GRID) -> float:
        event = Repeat(step, self.num_steps)
        return epsilon(event, self.delta, accountant=self.accountant, grid=grid)


def _scaled(
    targets: Sequence[OwnerTarget], rate: float, price: _Price
) -> tuple[Owners, float]:
    """One calibration for each distinct epsilon, then C_i in proportion to 1/sigma_i.

    sigma is rounded up after C_i was fixed, so every owner has at least its sigma_i.
    """
    own = {
        target: calibrate_noise_multiplier(
            target_epsilon=target * (1 - 1e-9),  # C_i is rounded, too
            delta=price.delta,
            sample_rate=rate,
            num_steps=price.num_steps,
            accountant=price.accountant,
        )
        for target in {target.epsilon for target in targets}
    }
    size = sum(target.size for target in targets)
    sigma = size / math.fsum(target.size / own[target.epsilon] for target in targets)
    members = tuple(
        Owner(t.name, t.size, t.epsilon, rate, sigma / own[t.epsilon]) for t in targets
    )
    return Owners("scale", members), round_up(sigma * (1 + 1e-9))


@dataclass
class _Group:
    """Owners of one epsilon: their rate, and how its price moves with q and sigma."""

    target: float
    size: int
    rate: float
    aim: float = 0.0  # ln of the epsilon that is aimed at
    cost: float = 0.0  # ln epsilon at (rate, sigma)
    by_rate: float = 1.0  # its slopes in ln q and in ln sigma
    by_sigma: float = -1.0
    has_slopes: bool = False  # taken near the aim

    def linear_rate(self, move: float) -> float:
        """Returns q_i that meets the aim when ln sigma moves, by the straight line."""
        wanted = (self.aim - self.cost - self.by_sigma * move) / self.by_rate
        wanted = min(max(wanted, -_LARGEST_MOVE), _LARGEST_MOVE)
        return min(1.0, self.rate * math.exp(wanted))


def _sampled(
    targets: Sequence[OwnerTarget], batch_size: float, price: _Price
) -> tuple[Owners, float]:
    """Newton's method on all equations together, in logarithms.

    Slopes are taken on the coarse grid. Prices are coarse at first, and exact as soon
    as the coarse ones are met.
    """
    groups = _groups(targets, batch_size)
    sigma = renyi_scale(
        lambda value: Repeat(PoissonGaussian(groups[0].rate, value), price.num_steps),
        sum(group.target * group.size for group in groups)
        / sum(group.size for group in groups),
        price.delta,
    )
    grid = SEARCH_GRID
    for _ in range(_MOST_ROUNDS):
        _measure(groups, sigma, price, grid)
        if all(_met(group) for group in groups) and _fills(groups, batch_size):
            if grid == CERTIFICATE_GRID:
                break
            grid = CERTIFICATE_GRID
            continue
        sigma = _moved(groups, sigma, batch_size)
    else:
        raise _unreachable()
    rates = {group.target: group.rate for group in groups}
    members = tuple(Owner(t.name, t.size, t.epsilon, rates[t.epsilon]) for t in targets)
    return Owners("sample", members), sigma


def _groups(targets: Sequence[OwnerTarget], batch_size: float) -> list[_Group]:
    size = sum(target.size for target in targets)
    values = sorted({target.epsilon for target in targets})
    return [
        _Group(
            value,
            sum(t.size for t in targets if t.epsilon == value),
            batch_size / size,
            math.log(value) - _MARGIN,
        )
        for value in values
    ]


def _measure(groups: list[_Group], sigma: float, price: _Price, grid: float) -> None:
    """Prices every group where it stands; far from its aim also its slopes."""

    def cost(rate: float, noise: float, spacing: float) -> float:
        return _logarithm(price.of(PoissonGaussian(rate, noise), spacing))

    for group in groups:
        if grid == CERTIFICATE_GRID:
            group.cost = cost(group.rate, sigma, grid)
            continue
        coarse = min(grid, max(group.target / 100, CERTIFICATE_GRID))
        group.cost = _foreseen(PoissonGaussian(group.rate, sigma), coarse, price)
        if group.has_slopes:
            continue
        base = cost(group.rate, sigma, coarse)
        lower = cost(group.rate * math.exp(-_PROBE), sigma, coarse)
        more = cost(group.rate, sigma * math.exp(_PROBE), coarse)
        group.by_rate = min(max((base - lower) / _PROBE, 0.2), 10.0)
        group.by_sigma = max(min((more - base) / _PROBE, -0.2), -10.0)
        group.has_slopes = abs(base - group.aim) < _NEAR


def _foreseen(step: PoissonGaussian, coarse: float, price: _Price) -> float:
    """Returns ln epsilon on the grid of certificates as two coarser ones foresee it.

    What a grid adds to epsilon grows with the square of its spacing. Only where to
    look next is taken from here: what holds is priced on the grid of certificates.
    """
    once = price.of(step, coarse)
    if coarse <= CERTIFICATE_GRID or not once < math.inf:
        return _logarithm(once)
    added = max(price.of(step, 2 * coarse) - once, 0.0) / 3
    added *= 1 - (CERTIFICATE_GRID / coarse) ** 2
    return _logarithm(once - min(added, once / 2))


def _logarithm(spent: float) -> float:
    return min(max(math.log(max(spent, 1e-300)), -700.0), 50.0)


def _met(group: _Group) -> bool:
    """Whether a group's price is below its target by less than a thousandth."""
    below = math.log(group.target) - group.cost
    return below >= 0 and (below < _TIGHT or group.rate == 1.0)


def _fills(groups: list[_Group], batch_size: float) -> bool:
    total = math.fsum(group.rate * group.size for group in groups)
    return abs(total / batch_size - 1) < 1e-9


def _moved(groups: list[_Group], sigma: float, batch_size: float) -> float:
    """Moves all rates to where the lines meet the aims; returns the new sigma.

    The least move of ln sigma at which the rates fill the batch, by halving; sigma is
    rounded up and the rates are cut to the batch.
    """

    def total(move: float) -> float:
        return math.fsum(group.size * group.linear_rate(move) for group in groups)

    low, high = -_LARGEST_MOVE, _LARGEST_MOVE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if total(middle) >= batch_size else (middle, high)
    if sigma * math.exp(high) > _LARGEST_SIGMA:
        raise _unreachable()
    moved = round_up(sigma * math.exp(high))
    move = math.log(moved / sigma)
    for group in groups:
        group.rate = group.linear_rate(move)
    _cut(groups, batch_size)
    return moved


def _cut(groups: list[_Group], batch_size: float) -> None:
    """Lowers the rates below 1 until all together fill the batch and no more."""
    sampled = [group for group in groups if group.rate < 1]
    whole = sum(group.size for group in groups if group.rate == 1)
    filled = math.fsum(group.rate * group.size for group in sampled)
    factor = min(1.0, max(batch_size - whole, 0.0) / filled) if filled else 1.0
    for group in sampled:
        group.rate *= factor


def _unreachable() -> PlanError:
    return PlanError(
        "No noise and no rates give every owner its epsilon at this batch size.",
        "Raise the smallest epsilon, or lower the batch size or the number of steps.",
    )
