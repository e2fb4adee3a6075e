"""Adaptive clipping: gradients and count share one event, and C stays in its limits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import Composed, Gaussian
from pft_ray.accounting.quantile import (
    QuantileClipping,
    default_count_noise_multiplier,
)
from pft_ray.errors import PlanError

SIGMAS = st.floats(0.01, 1e4)
RATIOS = st.floats(1.0001, 1e4)
CLIP_NORMS = st.floats(1e-6, 1e6)


def quantile(sigma_b=5.0, **changes):
    fields = {
        "target": 0.5,
        "count_noise_multiplier": sigma_b,
        "clip_norm_min": 1e-9,
        "clip_norm_max": 1e9,
    }
    return QuantileClipping(**(fields | changes))


@given(SIGMAS, RATIOS)
def test_precisions_add_up_to_that_of_the_event(sigma, ratio):
    """sigma_g^-2 + sigma_b^-2 = sigma^-2, in 60 digits."""
    sigma_b = sigma * ratio
    found = quantile(sigma_b).gradient_noise_multiplier(sigma)
    with localcontext() as context:
        context.prec = 60
        exact = (Decimal(sigma) ** -2 - Decimal(sigma_b) ** -2) ** Decimal("-0.5")
        assert abs(Decimal(found) / exact - 1) < Decimal("1e-12")


@given(SIGMAS, RATIOS, CLIP_NORMS)
def test_the_joint_norm_is_never_below_the_exact_one(sigma, ratio, clip_norm):
    """Squares are compared as fractions: no rounding in the test itself."""
    joint = quantile(sigma * ratio).joint(sigma, clip_norm)
    exact = Fraction(clip_norm) ** 2 + Fraction(joint.weight) ** 2
    assert exact <= Fraction(joint.norm) ** 2 <= exact * (1 + Fraction(1, 2**47))


@given(SIGMAS, RATIOS, CLIP_NORMS)
def test_the_count_has_the_noise_that_was_asked_for(sigma, ratio, clip_norm):
    joint = quantile(sigma * ratio).joint(sigma, clip_norm)
    assert sigma * joint.norm / joint.weight == pytest.approx(sigma * ratio, rel=1e-9)


def test_noise_is_rounded_up():
    sigma, sigma_b = 0.7, 4.9
    found = quantile(sigma_b).gradient_noise_multiplier(sigma)
    assert Fraction(found) ** -2 + Fraction(sigma_b) ** -2 <= Fraction(sigma) ** -2


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [1.1, 2.0, 7.1])
def test_the_two_releases_together_cost_what_the_event_costs(sigma, ratio):
    """Gradients and count as two Gaussians, composed by the accountant."""
    sigma_g = quantile(sigma * ratio).gradient_noise_multiplier(sigma)
    both = Composed((Gaussian(sigma_g), Gaussian(sigma * ratio)))
    assert epsilon(both, 1e-6) == pytest.approx(epsilon(Gaussian(sigma), 1e-6), 1e-3)
    assert epsilon(Gaussian(sigma_g), 1e-6) < 0.999 * epsilon(Gaussian(sigma), 1e-6)


def test_the_default_costs_one_per_cent_of_noise():
    for sigma in (0.5, 1.0, 20.0):
        sigma_b = default_count_noise_multiplier(sigma)
        found = quantile(sigma_b).gradient_noise_multiplier(sigma)
        assert found == pytest.approx(1.01 * sigma, rel=1e-12)
        assert sigma_b == pytest.approx(7.124 * sigma, rel=1e-4)


def test_c_moves_against_the_error():
    """exp(-0.2 (b - 0.5)): too many within lowers C, too few raise it."""
    rule = quantile()
    assert rule.next_clip_norm(2.0, 0.5) == 2.0
    assert rule.next_clip_norm(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert rule.next_clip_norm(2.0, 0.0) == pytest.approx(2.0 * math.exp(0.1))
    assert quantile(target=0.9).next_clip_norm(2.0, 0.5) > 2.0


@given(
    start=st.floats(0.25, 4.0),
    fraction=st.floats(allow_nan=True, allow_infinity=True),
    rate=st.floats(1e-3, 1e6),
)
def test_c_stays_within_its_limits_whatever_was_released(start, fraction, rate):
    rule = quantile(clip_norm_min=0.25, clip_norm_max=4.0, learning_rate=rate)
    assert 0.25 <= rule.next_clip_norm(start, fraction) <= 4.0


def test_limits_far_apart_do_not_overflow():
    rule = quantile(clip_norm_min=1e-300, clip_norm_max=1e300, learning_rate=1e3)
    assert rule.next_clip_norm(1.0, -1e300) == 1e300
    assert rule.next_clip_norm(1.0, 1e300) <= 1e-299


def test_a_fraction_that_is_no_number_moves_nothing():
    assert quantile().next_clip_norm(0.3, math.nan) == 0.3


@pytest.mark.parametrize(
    "change",
    [
        {"target": 0.0},
        {"target": 1.0},
        {"target": -0.1},
        {"target": 1.1},
        {"target": math.nan},
        {"target": "0.5"},
        {"count_noise_multiplier": 0.0},
        {"count_noise_multiplier": math.inf},
        {"clip_norm_min": 0.0},
        {"clip_norm_max": math.nan},
        {"learning_rate": 0.0},
        {"learning_rate": -0.2},
    ],
)
def test_quantiles_that_are_refused(change):
    with pytest.raises(PlanError):
        quantile(**change)


@pytest.mark.parametrize("sigma_b", [0.5, 0.999, 1.0])
def test_a_count_with_too_little_noise_is_refused_with_what_to_give(sigma_b):
    with pytest.raises(PlanError) as caught:
        quantile(sigma_b).joint(1.0, 0.1)
    assert "noise multiplier 1" in caught.value.message
    assert "7.124" in caught.value.fix
    assert quantile(math.nextafter(1.0, 2)).joint(1.0, 0.1).norm > 1e6
