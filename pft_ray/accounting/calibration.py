"""From a target epsilon to noise, steps or batch: always on the private side."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING

from pft_ray.accounting.accountants import (
    CERTIFICATE_GRID,
    SEARCH_GRID,
    Gate,
    epsilon,
    require_gate,
)
from pft_ray.accounting.events import (
    Event,
    PoissonGaussian,
    Repeat,
    check_count,
    check_positive,
    check_rate,
    count_leaves,
)
from pft_ray.accounting.renyi import renyi_epsilon
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.accounting.plan import Plan, UserLevel

# A calibrated value stays this far below its target, so that recomputing epsilon on
# another machine cannot land above it.
_MARGIN = 1e-6
_DIGITS = 5
_LARGEST_SCALE = 1e6
_MOST_STEPS = 10**7
_MOST_TRIALS = 60
_MOST_CORRECTIONS = 6


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    num_steps: int,
    user: UserLevel | None = None,
    accountant: Gate = "pld",
) -> float:
    """Returns the least noise multiplier that keeps a run within the target.

    Args:
        target_epsilon: PLD epsilon that may not be passed.
        delta: In (0, 1).
        sample_rate: Probability of a unit to be in a step.
        num_steps: All steps that are charged, the fault reserve included.
        user: How users are hidden; None: the unit is what is sampled.
        accountant: Whose epsilon it is; ``rdp`` needs more noise.

    Returns:
        The noise multiplier, rounded up to five significant digits; at most 0.1 %
        above the tight value.

    Raises:
        PlanError: A value is out of range or no noise reaches the target.

    Guarantee:
        ``epsilon(Repeat(PoissonGaussian(sample_rate, result), num_steps), delta)``, or
        that of the user level's step event, is at most ``target_epsilon``.
    """
    rate = check_rate(sample_rate)
    count = check_count(num_steps, "num_steps")

    def make_event(sigma: float) -> Event:
        if user is not None:
            return Repeat(user.step_event(rate, sigma), count)
        return Repeat(PoissonGaussian(rate, sigma), count)

    return _least_scale(make_event, target_epsilon, delta, require_gate(accountant))


def calibrate_discrete_sigma(
    *, target_epsilon: float, delta: float, make_event: Callable[[float], Event]
) -> float:
    """Returns the least scale whose event keeps within the target.

    Args:
        target_epsilon: PLD epsilon that may not be passed.
        delta: In (0, 1).
        make_event: From the scale to the whole event, for example all looks of an
            ``EvaluationPlan``; a larger scale must cost less.

    Returns:
        The scale, rounded up to five significant digits.

    Raises:
        PlanError: A value is out of range or no noise reaches the target.

    Guarantee:
        ``epsilon(make_event(result), delta)`` is at most ``target_epsilon``.
    """
    return _least_scale(make_event, target_epsilon, delta)


def calibrate_num_steps(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    noise_multiplier: float,
    grid: float = CERTIFICATE_GRID,
) -> int:
    """Returns the largest number of steps within the target; at most 10 million.

    Raises:
        PlanError: A value is out of range, or one step already costs more.

    Guarantee:
        Epsilon at the result is at most ``target_epsilon``; at the certificate's
        grid, one step more would pass it.
    """
    step = PoissonGaussian(sample_rate, noise_multiplier)
    result = _largest_int(
        lambda count: Repeat(step, count), target_epsilon, delta, _MOST_STEPS, grid
    )
    if result == 0:
        one = epsilon(step, delta)
        raise PlanError(
            f"One step costs epsilon {one:.4g}, more than {target_epsilon:g}.",
            "Raise noise_multiplier or epsilon, or lower sample_rate.",
        )
    return result


def largest_affordable(
    plan: Plan, *, epsilon: float, delta: float
) -> dict[str, float | int | None]:
    """Returns which smaller run would fit what remains of a budget.

    Each entry changes one number of the plan and keeps the others; it is None where
    that change alone does not help. Meant for the message of a refusal.

    Args:
        plan: The plan that does not fit.
        epsilon: What remains.
        delta: What remains.

    Returns:
        ``epsilon`` and ``delta`` that could be asked for, ``noise_multiplier`` that
        meets them with the plan's steps and batch, ``num_steps`` (planned, beside
        the plan's fault reserve) and ``batch_size`` (expected) that meet them with
        the plan's noise multiplier.
    """
    keys = ("epsilon", "delta", "noise_multiplier", "num_steps", "batch_size")
    result: dict[str, float | int | None] = dict.fromkeys(keys)
    if not epsilon > 0 or not delta > 0:
        return result
    target, total = min(delta, plan.delta), plan.num_steps_max
    result["epsilon"], result["delta"] = epsilon, target
    if plan.owners is not None or plan.independent_workers > 1:
        # The numbers below are those of one mechanism with one epsilon.
        return result
    try:
        result["noise_multiplier"] = calibrate_noise_multiplier(
            target_epsilon=epsilon,
            delta=target,
            sample_rate=plan.sample_rate,
            num_steps=total,
            user=plan.user,
        )
    except PlanError:
        return result
    sampled = plan.expected_batch_size / plan.sample_rate

    def of_steps(count: int) -> Event:
        return Repeat(plan.step_event, count)

    def of_batch(units: int) -> Event:
        smaller = replace(plan, sample_rate=min(1.0, units / sampled))
        return Repeat(smaller.step_event, total)

    steps = _largest_int(of_steps, epsilon, target, total, SEARCH_GRID)
    largest_batch = max(1, int(plan.expected_batch_size))
    batch = _largest_int(of_batch, epsilon, target, largest_batch, SEARCH_GRID)
    result["num_steps"] = max(0, steps - plan.fault_reserve) or None
    result["batch_size"] = batch or None
    return result


def _least_scale(
    make_event: Callable[[float], Event],
    target_epsilon: float,
    delta: float,
    accountant: Gate = "pld",
) -> float:
    """Returns the least scale, rounded up, with epsilon(make_event(scale)) in target.

    Brackets by the Renyi bound, searches on the coarse grid, corrects on the fine
    grid and certifies the rounded result there.
    """
    target = check_positive(target_epsilon, "epsilon") * (1 - _MARGIN)
    check_rate(delta, "delta")

    def cost(scale: float, grid: float) -> float:
        spent = epsilon(make_event(scale), delta, accountant=accountant, grid=grid)
        return math.log(max(spent, 1e-300) / target)

    coarse = min(SEARCH_GRID, max(target / 100, CERTIFICATE_GRID))
    start, slope = _scale_edge(
        lambda scale: cost(scale, coarse), renyi_scale(make_event, target, delta)
    )
    exact = _corrected(lambda scale: cost(scale, CERTIFICATE_GRID), start, slope)
    result = round_up(exact)
    while cost(result, CERTIFICATE_GRID) > 0:
        result = round_up(result * (1 + 1e-4))
        if result > _LARGEST_SCALE:
            raise _unreachable(target_epsilon)
    return result


def renyi_scale(
    make_event: Callable[[float], Event], target: float, delta: float
) -> float:
    """Returns a scale that meets the target by the Renyi bound, or 1."""

    def meets(scale: float) -> bool:
        return renyi_epsilon(count_leaves(make_event(scale)), delta) <= target

    low, high = 1e-3, 1e-3
    while not meets(high):
        low, high = high, 2 * high
        if high > _LARGEST_SCALE:
            return 1.0
    while high > low * 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _scale_edge(cost: Callable[[float], float], start: float) -> tuple[float, float]:
    """Finds where a falling cost meets zero, to 0.1 %, in logarithms of the scale.

    Args:
        cost: Of the scale; at most 0 on the private side.
        start: Where to look first.

    Returns:
        A scale on the private side and the slope of cost there.

    Raises:
        PlanError: No scale is large enough.
    """
    low, high, scale = 0.0, math.inf, start
    slope, last = -1.0, (0.0, 0.0)
    for _ in range(_MOST_TRIALS):
        value = min(max(cost(scale), -2.0), 2.0)
        slope = _secant(slope, last, (scale, value))
        last = (scale, value)
        if value <= 0:
            high = scale
        else:
            low = scale
        if high <= low * 1.001:
            break
        # Aim a little beyond the edge, so that the bracket closes from both sides.
        beyond = -5e-4 if value <= 0 else 5e-4
        scale *= math.exp(-value / slope + beyond)
        if not low < scale < high:
            scale = math.sqrt(max(low, high / 4) * min(high, low * 4))
        if scale > _LARGEST_SCALE:
            raise _unreachable()
    return high, slope


def _corrected(cost: Callable[[float], float], start: float, slope: float) -> float:
    """Moves a coarse edge to where the fine cost is at most 0, within 0.03 %."""
    best, scale, last = start, start, (0.0, 0.0)
    for _ in range(_MOST_CORRECTIONS):
        value = min(max(cost(scale), -2.0), 2.0)  # infinite where no grid holds it
        slope = _secant(slope, last, (scale, value))
        last = (scale, value)
        if value <= 0:
            best = min(best, scale)
            if value >= 3e-4 * slope:
                break
        scale *= math.exp(-value / slope + 1e-4)
    return best


def _largest_int(
    make_event: Callable[[int], Event],
    target_epsilon: float,
    delta: float,
    most: int,
    grid: float,
) -> int:
    """Returns the largest count from 1 to ``most`` within the target, or 0."""
    target = check_positive(target_epsilon, "epsilon") * (1 - _MARGIN)
    check_rate(delta, "delta")

    def renyi(count: int) -> float:
        spent = renyi_epsilon(count_leaves(make_event(count)), delta)
        return math.log(max(spent, 1e-300) / target)

    def cost_at(spacing: float) -> Callable[[int], float]:
        return lambda count: math.log(
            max(epsilon(make_event(count), delta, grid=spacing), 1e-300) / target
        )

    start = _int_edge(renyi, 1, most)
    start = _int_edge(cost_at(SEARCH_GRID), start, most)
    if grid >= SEARCH_GRID:
        return start
    return _int_edge(cost_at(grid), start, most)


def _int_edge(cost: Callable[[int], float], start: int, most: int) -> int:
    """Returns the last count whose rising cost is at most 0, or 0 when none is."""
    private, over, count = 0, most + 1, min(max(start, 1), most)
    slope, last = 0.5, (0.0, 0.0)
    for trial in range(_MOST_TRIALS):
        value = min(max(cost(count), -2.0), 2.0)
        slope = _secant(slope, last, (count, value))
        last = (float(count), value)
        if value <= 0:
            private = count
        else:
            over = count
        if over - private == 1:
            break
        guess = int(count * math.exp(-value / slope))
        if trial > _MOST_TRIALS // 3:
            guess = (private + over) // 2
        count = min(max(guess, private + 1), over - 1)
    return private


def _secant(slope: float, last: tuple[float, float], now: tuple[float, float]) -> float:
    """Returns the slope of cost over ln(argument); the old one where it makes none."""
    if last[0] <= 0 or last[0] == now[0]:
        return slope
    found = (now[1] - last[1]) / math.log(now[0] / last[0])
    return found if 0.1 < found / slope < 10 else slope


def round_up(value: float) -> float:
    """Returns ``value`` rounded up to five significant digits."""
    context = Context(prec=_DIGITS, rounding=ROUND_CEILING)
    return float(context.create_decimal(Decimal(value)))


def _unreachable(target_epsilon: float | None = None) -> PlanError:
    asked = "" if target_epsilon is None else f" {target_epsilon:g}"
    return PlanError(
        f"No noise below {_LARGEST_SCALE:g} times the sensitivity reaches epsilon"
        f"{asked}.",
        "Raise epsilon or delta, or lower the number of steps or the sample rate.",
    )
