"""Noise at one fixed order: least, safe, and known reference figures."""

from __future__ import annotations

import math

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.events import Gaussian, PoissonGaussian, Repeat
from pft_ray.accounting.filter_calibration import (
    curve_at_order,
    epsilon_at_order,
    order_for_target,
    scale_at_order,
)
from pft_ray.accounting.filters import budget_units, rho_units
from pft_ray.accounting.plan import Phase, Plan
from pft_ray.errors import PlanError


def reference(sigma: float) -> Repeat:
    return Repeat(PoissonGaussian(256 / 60000, sigma), 2344)


def test_the_reference_runs_order_and_noise():
    """At order 10 sigma 1 costs 1.3534; asked for that, sigma 1 comes back."""
    assert order_for_target(reference, 1.3534, 1e-5) == 10
    assert scale_at_order(reference, 1.3534, 1e-5, 10) == pytest.approx(1.0, abs=2e-4)
    assert epsilon_at_order(reference(1.0), 1e-5, 10) == pytest.approx(1.3534, abs=1e-4)


@pytest.mark.parametrize("order", [3, 10, 32])
def test_another_accountant_gives_the_same_epsilon(order):
    accountant = RdpAccountant(orders=[order])
    step = dp_event.PoissonSampledDpEvent(256 / 60000, dp_event.GaussianDpEvent(1.1))
    accountant.compose(step, 2344)
    mine = epsilon_at_order(reference(1.1), 1e-5, order)
    assert mine == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-7)


def test_an_unsampled_gaussian_has_a_closed_form():
    """order * T / (2 sigma^2) = epsilon - conversion."""
    budget = 6.0 - math.log1p(-1 / 8) + math.log(8e-5) / 7
    wanted = math.sqrt(8 * 50 / (2 * budget))
    found = scale_at_order(lambda sigma: Repeat(Gaussian(sigma), 50), 6.0, 1e-5, 8)
    assert wanted <= found <= wanted * (1 + 1e-4)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0.001, 1),
    steps=st.integers(1, 500),
    target=st.floats(0.5, 20),
    order=st.integers(2, 40),
)
def test_the_noise_is_enough_and_not_a_ten_thousandth_too_much(
    rate, steps, target, order
):
    budget = budget_units(target, 1e-5, order)

    def event(sigma):
        return Repeat(PoissonGaussian(rate, sigma), steps)

    try:
        sigma = scale_at_order(event, target, 1e-5, order)
    except PlanError:
        assert rho_units(event(1e8), order) > budget
        return
    assert rho_units(event(sigma), order) <= budget
    if sigma > 2e-3:
        assert rho_units(event(sigma * (1 - 2e-4)), order) > budget


def test_an_order_that_cannot_serve_the_target_is_refused():
    with pytest.raises(PlanError, match="order 2"):
        scale_at_order(reference, 1.0, 1e-5, 2)


def test_the_curve_ends_at_t_max():
    plan = Plan(
        "record", 60000, 256 / 60000, 1.0, (Phase("a", 90, "all", 1.0),), 9, 1e-5
    )
    curve = curve_at_order(plan, 10)
    assert len(curve) <= 20
    assert curve[-1] == (99, epsilon_at_order(plan.event, 1e-5, 10))
    assert curve == sorted(curve)
