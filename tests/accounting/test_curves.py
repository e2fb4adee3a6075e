"""The curve beside a running job, and the price of its fault reserve."""

from __future__ import annotations

import dataclasses

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.accounting.curves import epsilon_curve, price_of_reserve
from pft_ray.accounting.events import Repeat
from pft_ray.accounting.plan import Phase, Plan

PLAN = Plan(
    unit="record",
    size=4150,
    sample_rate=512 / 4150,
    noise_multiplier=1.7325,
    phases=(Phase("head", 60, "head", 1.0),),
    fault_reserve=10,
    delta=1e-5,
)


def test_curve_rises_to_the_reported_value():
    curve = epsilon_curve(PLAN)
    steps, values = zip(*curve, strict=True)
    assert len(curve) == 20
    assert steps[-1] == PLAN.num_steps_max
    assert values[-1] == epsilon(PLAN.event, PLAN.delta)
    assert list(steps) == sorted(set(steps))
    assert list(values) == sorted(values)
    for count, value in curve[:-1:6]:
        exact = epsilon(Repeat(PLAN.step_event, count), PLAN.delta)
        assert exact <= value <= exact * 1.01


@pytest.mark.parametrize("num_steps", [1, 2, 19, 20, 21])
def test_short_runs_have_a_point_a_step(num_steps):
    plan = dataclasses.replace(
        PLAN, phases=(Phase("a", num_steps, "head", 1.0),), fault_reserve=0
    )
    steps = [count for count, _ in epsilon_curve(plan)]
    assert steps[-1] == num_steps
    assert len(steps) == min(20, num_steps)
    assert min(steps) >= 1


def test_reserve_of_ten_steps_in_sixty_costs_five_per_cent():
    price = price_of_reserve(PLAN)
    alone = calibrate_noise_multiplier(
        target_epsilon=3.0,
        delta=1e-5,
        sample_rate=512 / 4150,
        num_steps=60,
    )
    assert price.with_reserve == 1.7325
    assert price.without_reserve == pytest.approx(alone, rel=1e-3)
    assert price.extra_noise == pytest.approx(0.054, abs=0.002)


def test_no_reserve_costs_nothing():
    price = price_of_reserve(dataclasses.replace(PLAN, fault_reserve=0))
    assert price.extra_noise == 0.0
