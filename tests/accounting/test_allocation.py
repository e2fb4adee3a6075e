"""Shares of a filter's budget: never more than there is, larger where gains stall."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.allocation import (
    Allocation,
    Released,
    noise_multiplier_of_share,
)
from pft_ray.accounting.filters import UNITS
from pft_ray.errors import PlanError

FLOATS = st.floats(-1e3, 1e3)
ROUNDS = st.lists(st.integers(1, 100), min_size=1, max_size=8)


@given(
    budget=st.integers(0, 2**60),
    weights=ROUNDS,
    values=st.lists(st.tuples(FLOATS, st.floats(0, 10)), min_size=8, max_size=8),
    boost=st.floats(1, 100),
)
def test_whatever_is_released_the_shares_fit_and_use_the_budget_up(
    budget, weights, values, boost
):
    allocation, left, released = Allocation(boost), budget, []
    for number in range(len(weights)):
        share = allocation.share(left, weights[number:], released)
        assert 0 <= share <= left
        left -= share
        released.append(Released(*values[number]))
    assert left == 0


@given(budget=st.integers(1000, 2**60), weights=ROUNDS)
def test_without_boost_every_round_gets_its_weight(budget, weights):
    left = budget
    for number in range(len(weights)):
        share = Allocation(1.0).share(left, weights[number:], [])
        exact = Fraction(budget * weights[number], sum(weights))
        assert abs(share - exact) <= len(weights) + 1
        left -= share


def test_a_stalled_round_raises_the_next_share_and_a_gain_lowers_it():
    allocation = Allocation(2.0)
    gain = [Released(0.5, 0.01), Released(0.6, 0.01)]
    stall = [Released(0.6, 0.01), Released(0.61, 0.01)]
    loss = [Released(0.6, 0.01), Released(0.3, 0.01)]
    assert allocation.share(700, [1, 1, 1, 1], gain) == 100
    assert allocation.share(500, [1, 1, 1, 1], stall) == 200
    assert allocation.share(500, [1, 1, 1, 1], loss) == 200
    assert allocation.share(300, [1, 1], stall) == 200
    assert allocation.share(500, [3, 1], gain) == 300
    assert allocation.share(500, [3], gain) == 500


@settings(max_examples=25, deadline=None)
@given(
    sigma=st.floats(0.5, 5),
    rate=st.floats(0.001, 0.3),
    steps=st.integers(1, 500),
    order=st.sampled_from([2, 5, 17, 64]),
)
def test_the_noise_of_a_share_is_what_another_library_prices(sigma, rate, steps, order):
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    accountant = RdpAccountant([order])
    accountant.compose(event, steps)
    units = math.ceil(float(accountant._rdp[0]) * UNITS) + steps
    found = noise_multiplier_of_share(
        units, order=order, sample_rate=rate, num_steps=steps
    )
    assert found == pytest.approx(sigma, rel=1e-3) or found < sigma
    again = RdpAccountant([order])
    again.compose(
        dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(found)), steps
    )
    assert again._rdp[0] * UNITS <= units * (1 + 1e-9)


@pytest.mark.parametrize("boost", [0.5, float("nan"), float("inf"), -1])
def test_a_boost_that_is_none_is_refused(boost):
    with pytest.raises(PlanError, match="boost"):
        Allocation(boost)


@pytest.mark.parametrize(
    ("left", "weights"), [(-1, [1]), (1.5, [1]), (10, []), (10, [0, 1])]
)
def test_numbers_out_of_range_are_refused(left, weights):
    with pytest.raises(PlanError):
        Allocation().share(left, weights, [])


def test_a_share_that_buys_nothing_is_refused():
    with pytest.raises(PlanError, match="do not pay"):
        noise_multiplier_of_share(1, order=2, sample_rate=0.5, num_steps=1000)
