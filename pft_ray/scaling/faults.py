"""Checkpoint interval and fault reserve from the budget and a public failure rate.

A node that is lost without notice costs steps: those since the last registered
checkpoint and those of the grant that was charged and not made. They are made again
and paid from the fault reserve F of the plan, which is fixed before data are read.
Everything here is public: a failure rate of the kind of nodes, the time of a step from
a synthetic probe, the plan's own integers. The number of failures that really happen
decides nothing about the plan.

With failure rate lambda a node and hour, W nodes, T steps of s seconds, an interval of
c steps, d seconds a checkpoint, k steps a grant and r seconds a restart:

* checkpoints are made at ends of grants, so c is a multiple of k, or what is given is
  rounded up to one; the next grant is charged while this one's last step is made;
* so a failure loses at most c + k steps;
* with q failures the run makes at most T + q (c + k) steps and restarts q times, so it
  stands open to failures for  x(q) = (T + q (c + k)) (s + d / c) + q r  seconds;
* q failures are enough when  P(Poisson(lambda W x(q)) > q) <= risk, and the reserve is
  F = q (c + k)  for the least such q;
* the expected time is about  T (s + d / c) + n (c s / 2 + r)  with
  n = lambda W T (s + d / c)  failures. Without a bound on F its minimum is the interval
  of Young, c s = sqrt(2 d / (lambda W)), which Daly made more exact.

Young 1974: A first order approximation to the optimum checkpoint interval.
Daly 2006: A higher order estimate of the optimum checkpoint interval for restart dumps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import pdtrc, pdtrik

from pft_ray.errors import ScalingError
from pft_ray.scaling.checks import check_amount, check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HOUR_S = 3600.0
_MOST_ROUNDS = 1000


@dataclass(frozen=True)
class FaultModel:
    """What failures cost a run; all public.

    Attributes:
        num_steps: T, the planned steps.
        step_s: Time of a step, from a synthetic probe.
        failures_per_node_hour: Rate of losses without notice; lambda.
        num_nodes: W, nodes that hold workers; the most that may.
        checkpoint_s: How long a checkpoint stops the run.
        grant_size: k, steps that are charged ahead.
        restart_s: From a loss to the next step.
    """

    num_steps: int
    step_s: float
    failures_per_node_hour: float
    num_nodes: int
    checkpoint_s: float
    grant_size: int
    restart_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_nodes", "grant_size"):
            check_whole(getattr(self, name), name, 1)
        for name in ("failures_per_node_hour", "checkpoint_s", "restart_s", "step_s"):
            check_amount(getattr(self, name), name)
        if not self.step_s:
            raise ScalingError("step_s is 0.", "Give what the probe measured.")

    @property
    def failures_per_s(self) -> float:
        """Failures of all nodes together, a second."""
        return self.failures_per_node_hour * self.num_nodes / _HOUR_S


@dataclass(frozen=True)
class FaultPlan:
    """Interval and reserve for a plan.

    Attributes:
        checkpoint_interval: c, steps between registered checkpoints.
        fault_reserve: F, steps paid for beside the planned ones.
        expected_failures: Failures expected in the planned steps.
        failures_covered: Failures that F surely pays for.
        risk: Probability that more happen, at most. Above the risk that was asked
            for when the reserve may not be larger.
        expected_s: Expected time of the run, to first order.

    Guarantee:
        When failures come as the model says, a run that needs more than F steps for
        re-execution has a probability of at most ``risk``. Epsilon does not rest on
        this: it is computed at T + F, and a run whose steps are used up halts.
    """

    checkpoint_interval: int
    fault_reserve: int
    expected_failures: float
    failures_covered: int
    risk: float
    expected_s: float


def young_interval_s(checkpoint_s: float, seconds_between_failures: float) -> float:
    """Returns Young's interval between checkpoints, sqrt(2 d M), in seconds."""
    return math.sqrt(2 * checkpoint_s * seconds_between_failures)


def daly_interval_s(checkpoint_s: float, seconds_between_failures: float) -> float:
    """Returns Daly's higher-order interval between checkpoints, in seconds.

    With d below 2 M it is sqrt(2 d M) (1 + sqrt(d / 2 M) / 3 + (d / 2 M) / 9) - d,
    else M.
    """
    if checkpoint_s >= 2 * seconds_between_failures:
        return seconds_between_failures
    part = checkpoint_s / (2 * seconds_between_failures)
    young = young_interval_s(checkpoint_s, seconds_between_failures)
    return young * (1 + math.sqrt(part) / 3 + part / 9) - checkpoint_s


def choose_faults(
    model: FaultModel,
    *,
    max_reserve: float = 0.1,
    risk: float = 0.01,
    max_interval: int | None = None,
    min_interval: int = 1,
) -> FaultPlan:
    """Returns the interval of least expected time whose reserve is not too large.

    A shorter interval needs a smaller reserve and more checkpoints. What F costs is
    noise: the caller prices T + F and may come back with another ``max_reserve``.

    Args:
        model: What failures cost.
        max_reserve: Largest F as a part of T.
        risk: Accepted probability that F is used up.
        max_interval: Longest interval; None for no other bound than T.
        min_interval: Shortest interval; T at most.

    Raises:
        ScalingError: A number is out of range.
    """
    check_amount(max_reserve, "max_reserve")
    if not 0 < risk < 1:
        raise ScalingError(f"risk is {risk!r}.", "Give a probability between 0 and 1.")
    longest = model.num_steps
    if max_interval is not None:
        longest = min(longest, check_whole(max_interval, "max_interval", 1))
    shortest = min(longest, check_whole(min_interval, "min_interval", 1))
    chosen = _candidates(shortest, longest, model.grant_size)
    # Where a checkpoint is really made: at the end of a grant.
    intervals = np.ceil(chosen / model.grant_size) * model.grant_size
    most = np.floor(max_reserve * model.num_steps / (intervals + model.grant_size))
    covered = np.minimum(_least_covered(model, intervals, risk, most), most)
    left = _risk_left(model, intervals, covered)
    times = _expected_s(model, intervals)
    # Where no interval keeps to the risk, the one that comes nearest is taken.
    fits = left <= risk
    index = int(np.argmin(np.where(fits, times, np.inf) if fits.any() else left))
    return FaultPlan(
        int(chosen[index]),
        int(covered[index]) * int(intervals[index] + model.grant_size),
        float(_expected_failures(model, intervals)[index]),
        int(covered[index]),
        float(left[index]),
        float(times[index]),
    )


def _candidates(shortest: int, longest: int, grant_size: int) -> NDArray[np.float64]:
    """Returns the intervals to choose from: multiples of a grant, or the longest."""
    every = np.arange(shortest, longest + 1, dtype=np.float64)
    whole = every[every % grant_size == 0]
    return whole if len(whole) else every[-1:]


def _open_s(
    model: FaultModel, intervals: NDArray[np.float64], covered: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns x(q): seconds in which the run can fail, with q failures."""
    steps = model.num_steps + covered * (intervals + model.grant_size)
    seconds = steps * (model.step_s + model.checkpoint_s / intervals)
    return np.asarray(seconds + covered * model.restart_s)


def _risk_left(
    model: FaultModel, intervals: NDArray[np.float64], covered: NDArray[np.float64]
) -> NDArray[np.float64]:
    mean = model.failures_per_s * _open_s(model, intervals, covered)
    return np.asarray(pdtrc(covered, mean))


def _least_covered(
    model: FaultModel,
    intervals: NDArray[np.float64],
    risk: float,
    most: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns the least q that keeps to the risk, or anything above ``most``.

    The quantile is taken again at the longer exposure that it brings, which can only
    raise it, until nothing changes.
    """
    covered = np.zeros(len(intervals))
    for _ in range(_MOST_ROUNDS):
        mean = model.failures_per_s * _open_s(model, intervals, covered)
        short = (pdtrc(covered, mean) > risk) & (covered <= most)
        if not short.any():
            return covered
        # The inverse is real; the next integer above it is the quantile.
        far = np.ceil(pdtrik(1 - risk, mean[short]) - 1e-9)
        covered[short] = np.maximum(covered[short] + 1, far)
    return most + 1


def _expected_failures(
    model: FaultModel, intervals: NDArray[np.float64]
) -> NDArray[np.float64]:
    seconds = model.num_steps * (model.step_s + model.checkpoint_s / intervals)
    return model.failures_per_s * seconds


def _expected_s(
    model: FaultModel, intervals: NDArray[np.float64]
) -> NDArray[np.float64]:
    working = model.num_steps * (model.step_s + model.checkpoint_s / intervals)
    lost = intervals * model.step_s / 2 + model.restart_s
    return working + _expected_failures(model, intervals) * lost
