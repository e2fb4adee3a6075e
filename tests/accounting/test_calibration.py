"""Calibration: private, tight, and able to say what cannot be reached."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.calibration import (
    calibrate_discrete_sigma,
    calibrate_noise_multiplier,
    calibrate_num_steps,
    largest_affordable,
)
from pft_ray.accounting.events import DiscreteGaussian, PoissonGaussian, Repeat
from pft_ray.accounting.plan import EvaluationPlan, Phase, Plan
from pft_ray.errors import PlanError

PLAN = Plan(
    unit="record",
    size=4150,
    sample_rate=512 / 4150,
    noise_multiplier=1.7325,
    phases=(Phase("head", 40, "head", 1.0), Phase("lora", 20, "adapter", 0.1)),
    fault_reserve=10,
    delta=1e-5,
    target_epsilon=3.0,
)


def run(rate, sigma, count):
    return Repeat(PoissonGaussian(rate, sigma), count)


@pytest.mark.parametrize(
    ("target", "at", "rate", "count", "known"),
    [
        (1.0, 1e-6, 0.1, 512, 9.66183),  # jax_privacy documentation: 9.66
        (8.0, 1e-5, 0.04, 2250, 1.34765625),  # Opacus test suite, PRV, upper
        (1.0999, 1e-5, 256 / 60000, 2344, 1.0),
        (3.0, 1e-5, 512 / 4150, 60, 1.644),
        (0.1, 1e-6, 0.01, 1000, None),
        (50.0, 1e-5, 0.1, 100, None),
        (2.0, 1e-5, 1.0, 100, None),
        (1.0, 1e-7, 1e-3, 10_000, None),
    ],
)
def test_noise_is_private_and_within_a_thousandth_of_tight(
    target, at, rate, count, known
):
    sigma = calibrate_noise_multiplier(
        target_epsilon=target, delta=at, sample_rate=rate, num_steps=count
    )
    assert epsilon(run(rate, sigma, count), at) <= target
    assert epsilon(run(rate, sigma * 0.999, count), at) > target
    if known is not None:
        assert sigma == pytest.approx(known, rel=2e-3)
    assert float(f"{sigma:.5g}") == sigma  # readable: five significant digits


@given(
    target=st.floats(0.3, 20.0),
    rate=st.floats(1e-3, 1.0),
    count=st.integers(1, 2000),
)
@settings(max_examples=6, deadline=None)
def test_any_calibration_lands_on_the_private_side(target, rate, count):
    sigma = calibrate_noise_multiplier(
        target_epsilon=target, delta=1e-6, sample_rate=rate, num_steps=count
    )
    assert target * 0.99 < epsilon(run(rate, sigma, count), 1e-6) <= target


def test_a_calibration_takes_about_a_second():
    epsilon(run(0.1, 1.0, 2), 1e-5)  # imports dp-accounting
    start = time.process_time()
    calibrate_noise_multiplier(
        target_epsilon=1.07, delta=1e-5, sample_rate=256 / 60000, num_steps=2344
    )
    assert time.process_time() - start < 3.0


def test_published_number_of_steps():
    """Documentation of jax_privacy: epsilon 2, sigma 3, rate 0.1, delta 1e-6."""
    steps = calibrate_num_steps(
        target_epsilon=2.0, delta=1e-6, sample_rate=0.1, noise_multiplier=3.0
    )
    assert steps == 155
    assert epsilon(run(0.1, 3.0, 155), 1e-6) <= 2.0 < epsilon(run(0.1, 3.0, 156), 1e-6)


def test_one_step_too_dear_is_refused():
    with pytest.raises(PlanError, match="One step costs epsilon"):
        calibrate_num_steps(
            target_epsilon=0.5, delta=1e-6, sample_rate=1.0, noise_multiplier=1.0
        )


def test_a_single_affordable_step():
    one = epsilon(run(0.5, 2.0, 1), 1e-6)
    steps = calibrate_num_steps(
        target_epsilon=one * 1.01, delta=1e-6, sample_rate=0.5, noise_multiplier=2.0
    )
    assert steps == 1


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
@pytest.mark.parametrize("target", [0.3, 3.0, 10.0])
def test_looks(kind, target):
    def make(sigma):
        return EvaluationPlan(kind, (40, 60), 1, sigma, 1100, target, 1e-5).event

    sigma = calibrate_discrete_sigma(target_epsilon=target, delta=1e-5, make_event=make)
    assert epsilon(make(sigma), 1e-5) <= target
    assert epsilon(make(sigma * 0.999), 1e-5) > target


def test_very_little_discrete_noise():
    sigma = calibrate_discrete_sigma(
        target_epsilon=300.0, delta=1e-5, make_event=DiscreteGaussian
    )
    assert 200 < epsilon(DiscreteGaussian(sigma), 1e-5) <= 300.0


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_that_are_refused(target):
    with pytest.raises(PlanError, match="epsilon"):
        calibrate_noise_multiplier(
            target_epsilon=target, delta=1e-5, sample_rate=0.1, num_steps=10
        )


def test_unreachable_targets_say_what_to_change():
    with pytest.raises(PlanError) as caught:
        calibrate_noise_multiplier(
            target_epsilon=1e-7, delta=1e-9, sample_rate=0.5, num_steps=1000
        )
    assert "Raise epsilon or delta" in caught.value.fix


def test_what_a_smaller_budget_affords():
    fit = largest_affordable(PLAN, epsilon=2.0, delta=1e-4)
    assert fit["epsilon"] == 2.0
    assert fit["delta"] == PLAN.delta
    at = PLAN.delta
    steps = fit["num_steps"] + PLAN.fault_reserve
    rate, sigma = PLAN.sample_rate, PLAN.noise_multiplier
    assert epsilon(run(rate, sigma, steps), at) <= 2.0
    assert epsilon(run(rate, sigma, steps + 1), at) > 1.95
    smaller = fit["batch_size"] / PLAN.size
    assert epsilon(run(smaller, sigma, 70), at) <= 2.0
    assert epsilon(run(smaller * 1.02, sigma, 70), at) > 2.0
    assert epsilon(run(rate, fit["noise_multiplier"], 70), at) <= 2.0


def test_a_smaller_delta_counts_too():
    fit = largest_affordable(PLAN, epsilon=2.9, delta=1e-7)
    assert fit["delta"] == 1e-7
    steps = fit["num_steps"] + PLAN.fault_reserve
    assert epsilon(run(PLAN.sample_rate, 1.7325, steps), 1e-7) <= 2.9


def test_nothing_left_affords_nothing():
    for left in ({"epsilon": 0.0, "delta": 1e-5}, {"epsilon": 1.0, "delta": 0.0}):
        assert set(largest_affordable(PLAN, **left).values()) == {None}


def test_steps_below_the_reserve_are_not_offered():
    tight = dataclasses.replace(PLAN, fault_reserve=40)
    assert largest_affordable(tight, epsilon=1.0, delta=1e-5)["num_steps"] is None
