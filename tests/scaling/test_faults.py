"""Interval and reserve against simulated failures and the published formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson

from pft_ray.errors import ScalingError
from pft_ray.scaling.faults import (
    FaultModel,
    choose_faults,
    daly_interval_s,
    young_interval_s,
)

MODEL = FaultModel(
    num_steps=1000,
    step_s=2.0,
    failures_per_node_hour=0.05,
    num_nodes=40,
    checkpoint_s=6.0,
    grant_size=5,
    restart_s=40.0,
)


def steps_lost(model, interval, generator):
    """One run, failure by failure: steps that were charged and had to be made again.

    Grants, what is charged ahead and checkpoints are as the step loop has them: a
    checkpoint where a grant's end has passed an interval, the next grant charged with
    the last step of this one. Nothing of the formula is used.
    """
    done = saved = charged = lost = 0
    failure = generator.exponential(1 / model.failures_per_s)
    clock = 0.0
    k, end = model.grant_size, model.num_steps
    while done < end:
        stop = min((done // k + 1) * k, end)
        is_last = done + 1 == stop
        charged = max(charged, min(stop + k, end) if is_last else stop)
        seconds = model.step_s
        saves = is_last and (stop // interval > (stop - k) // interval or stop == end)
        if saves:
            seconds += model.checkpoint_s
        if clock + seconds > failure:
            lost += charged - saved
            done = charged = saved
            clock = failure + model.restart_s
            while True:  # one that comes while it restarts starts it again
                failure = clock - model.restart_s
                failure += generator.exponential(1 / model.failures_per_s)
                if failure >= clock:
                    break
                clock = failure + model.restart_s
            continue
        clock += seconds
        done += 1
        if saves:
            saved = done
    return lost


@pytest.mark.parametrize(
    ("interval", "grant", "worst"),
    [(1, 5, 10), (5, 5, 10), (6, 5, 15), (10, 5, 15), (11, 10, 30), (4, 2, 6)],
)
def test_a_failure_loses_what_the_loop_can_have_charged(interval, grant, worst):
    """Worst case by trying every place, with the loop's own rules."""
    lost = 0
    for start in range(0, 200, grant):
        saved = max(
            (s for s in range(0, start + 1, grant)
             if s == 0 or s // interval > (s - grant) // interval), default=0
        )  # fmt: skip
        lost = max(lost, start + 2 * grant - saved)
    assert lost == worst == math.ceil(interval / grant) * grant + grant
    one = replace(MODEL, grant_size=grant)
    bounds = {"max_interval": interval, "min_interval": interval}
    plan = choose_faults(one, max_reserve=1.0, risk=0.05, **bounds)
    assert plan.checkpoint_interval == interval
    assert plan.fault_reserve == plan.failures_covered * worst


@pytest.mark.statistical
@pytest.mark.parametrize("risk", [0.2, 0.05])
def test_more_than_the_reserve_is_lost_as_rarely_as_promised(risk):
    # False positives: below 1e-4, five standard errors.
    plan = choose_faults(MODEL, max_reserve=1.0, risk=risk)
    assert plan.risk <= risk
    generator = np.random.default_rng(5)
    runs = 600
    losses = [
        steps_lost(MODEL, plan.checkpoint_interval, generator) for _ in range(runs)
    ]
    share = np.mean([loss > plan.fault_reserve for loss in losses])
    assert share <= risk + 5 * math.sqrt(risk * (1 - risk) / runs)
    # The bound takes the worst place of each failure; a quarter of it is too little.
    quarter = np.mean([loss > plan.fault_reserve / 4 for loss in losses])
    assert quarter > risk


def test_the_reserve_is_the_least_that_keeps_to_the_risk():
    plan = choose_faults(MODEL, max_reserve=1.0, risk=0.05)
    loss = plan.checkpoint_interval + MODEL.grant_size
    assert plan.fault_reserve == plan.failures_covered * loss

    def beyond(count):
        steps = MODEL.num_steps + count * loss
        a_step = MODEL.step_s + MODEL.checkpoint_s / plan.checkpoint_interval
        seconds = steps * a_step + count * MODEL.restart_s
        mean = MODEL.failures_per_node_hour * MODEL.num_nodes * seconds / 3600
        return poisson.sf(count, mean)

    assert beyond(plan.failures_covered) == pytest.approx(plan.risk)
    assert plan.risk <= 0.05 < beyond(plan.failures_covered - 1)


def test_without_a_bound_the_interval_is_youngs():
    between_s = 3600 / (0.05 * 40)
    plan = choose_faults(MODEL, max_reserve=100.0)
    young = young_interval_s(6.0, between_s) / 2.0
    # The nearest whole number of grants; Daly's correction is smaller than that here.
    assert plan.checkpoint_interval == 5 * round(young / 5)
    daly = daly_interval_s(6.0, between_s) / 2.0
    assert abs(plan.checkpoint_interval - daly) < MODEL.grant_size


def test_intervals_of_the_papers():
    # sqrt(2 * 50 * 3600) = 600; Daly: 600 (1 + sqrt(1/144) / 3 + 1/1296) - 50.
    assert young_interval_s(50.0, 3600.0) == pytest.approx(600.0)
    assert daly_interval_s(50.0, 3600.0) == pytest.approx(
        600 * (1 + 1 / 36 + 1 / 1296) - 50
    )
    assert daly_interval_s(90.0, 45.0) == 45.0


def test_daly_is_the_better_optimum():
    """Against the exact expected time for exponential failures, found by search."""
    d, between = 60.0, 1200.0
    taus = np.linspace(50, 1200, 20_000)
    exact = (np.exp((taus + d) / between) - 1) / taus
    best = taus[np.argmin(exact)]
    assert daly_interval_s(d, between) == pytest.approx(best, rel=0.01)
    assert young_interval_s(d, between) != pytest.approx(best, rel=0.05)


def test_a_tight_reserve_shortens_the_interval():
    free = choose_faults(MODEL, max_reserve=1.0, risk=0.05)
    tight = choose_faults(MODEL, max_reserve=0.1, risk=0.05)
    assert tight.fault_reserve <= 100 < free.fault_reserve
    assert tight.checkpoint_interval < free.checkpoint_interval
    assert tight.expected_s > free.expected_s
    assert tight.risk <= 0.05


def test_of_the_intervals_that_fit_the_fastest_is_taken():
    tight = choose_faults(MODEL, max_reserve=0.1, risk=0.05)
    for interval in range(1, 200):
        one = replace(MODEL, num_steps=1000)
        plan = choose_faults(one, max_reserve=0.1, risk=0.05, max_interval=interval)
        assert interval < 5 or plan.checkpoint_interval % 5 == 0
        if plan.risk <= 0.05:
            assert plan.expected_s >= tight.expected_s - 1e-9


def test_a_rate_that_no_reserve_bears_says_what_risk_is_left():
    wild = replace(MODEL, failures_per_node_hour=2.0)
    plan = choose_faults(wild, max_reserve=0.05, risk=0.01)
    assert plan.fault_reserve <= 50
    assert plan.risk > 0.01


def test_without_failures_there_is_nothing_to_reserve():
    safe = replace(MODEL, failures_per_node_hour=0.0)
    plan = choose_faults(safe, max_interval=50)
    assert (plan.fault_reserve, plan.risk, plan.expected_failures) == (0, 0.0, 0.0)
    assert plan.checkpoint_interval == 50


@pytest.mark.parametrize(
    "change",
    [
        {"failures_per_node_hour": -0.1},
        {"failures_per_node_hour": math.nan},
        {"step_s": 0.0},
        {"num_steps": 0},
        {"grant_size": 1.5},
        {"num_nodes": True},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(ScalingError):
        replace(MODEL, **change)


@pytest.mark.parametrize("more", [{"risk": 0.0}, {"risk": 1.0}, {"max_reserve": -1.0},
    {"max_interval": 0}])  # fmt: skip
def test_bounds_out_of_range_are_refused(more):
    with pytest.raises(ScalingError):
        choose_faults(MODEL, **more)
