"""Integer units of a Renyi filter: rounding, additivity and known conversions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import (
    Composed,
    DiscreteGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    Repeat,
    count_leaves,
)
from pft_ray.accounting.filters import (
    UNITS,
    best_order,
    budget_units,
    epsilon_of_units,
    rho_units,
)
from pft_ray.accounting.renyi import renyi_divergence
from pft_ray.errors import PlanError

REFERENCE = Repeat(PoissonGaussian(256 / 60000, 1.0), 2344)


def test_reference_run_at_a_fixed_order():
    """One order, fixed beforehand, costs a thousandth over the best of all."""
    assert best_order(REFERENCE, 1e-5) == 10
    spent = epsilon_of_units(rho_units(REFERENCE, 10), 1e-5, 10)
    assert spent == pytest.approx(1.3534, abs=1e-4)
    assert spent >= epsilon(REFERENCE, 1e-5, accountant="rdp")


def test_units_of_plain_noise_are_exact():
    """order / (2 sigma^2), and s^2 times that for integer noise, rounded up."""
    assert rho_units(Gaussian(2.0), 8) == UNITS
    assert rho_units(DiscreteGaussian(4.0, 2), 8) == UNITS
    exact = Fraction(5 * UNITS, 2) / Fraction(1.7) ** 2
    assert rho_units(Gaussian(1.7), 5) == math.ceil(exact)


@given(
    rate=st.floats(1e-5, 1.0),
    sigma=st.floats(0.3, 50.0),
    count=st.integers(1, 5000),
    parts=st.integers(1, 5),
    order=st.integers(2, 64),
)
@settings(max_examples=60, deadline=None)
def test_units_add_up_however_a_run_is_charged(rate, sigma, count, parts, order):
    step = PoissonGaussian(rate, sigma)
    whole = rho_units(Repeat(step, count * parts), order)
    assert whole == parts * rho_units(Repeat(step, count), order)
    pair = Composed((Repeat(step, count), Gaussian(3.0)))
    assert rho_units(pair, order) == rho_units(Repeat(step, count), order) + rho_units(
        Gaussian(3.0), order
    )
    divergence = renyi_divergence(count_leaves(step), order) * count * parts
    assert whole >= divergence * UNITS * (1 - 1e-9)


@given(
    target=st.floats(0.05, 30.0), at=st.floats(1e-12, 1e-3), order=st.integers(2, 256)
)
def test_a_budget_never_buys_more_than_its_epsilon(target, at, order):
    units = budget_units(target, at, order)
    if units:
        assert epsilon_of_units(units, at, order) <= target * (1 + 1e-9)
        assert epsilon_of_units(units + 64, at, order) > target * (1 - 1e-9)


def test_budget_formula():
    """epsilon - ln(1 - 1/a) + ln(delta a) / (a - 1), clamped at 0."""
    expected = 3.0 - math.log(0.9) + math.log(1e-5 * 10) / 9
    assert budget_units(3.0, 1e-5, 10) / UNITS == pytest.approx(expected, abs=1e-9)
    assert budget_units(0.5, 1e-5, 2) == 0


def test_spending_a_budget_in_units_keeps_its_epsilon():
    """Charges up to the budget convert to at most the block's epsilon."""
    order, budget = 10, budget_units(1.5, 1e-5, 10)
    spent, charges = 0, 0
    step = rho_units(PoissonGaussian(256 / 60000, 1.0), order)
    while spent + step <= budget:
        spent, charges = spent + step, charges + 1
    assert epsilon_of_units(spent, 1e-5, order) <= 1.5
    run = Repeat(PoissonGaussian(256 / 60000, 1.0), charges)
    assert epsilon(run, 1e-5) <= epsilon(run, 1e-5, accountant="rdp") <= 1.5


@pytest.mark.parametrize("order", [1, 0, 1.5, True, "2"])
def test_orders_that_are_refused(order):
    with pytest.raises(PlanError):
        rho_units(Gaussian(1.0), order)


def test_non_private_events_have_no_price():
    with pytest.raises(PlanError, match="no price"):
        rho_units(Composed((Gaussian(1.0), NonPrivate())), 8)
    with pytest.raises(PlanError, match="epsilon"):
        budget_units(math.inf, 1e-5, 8)
