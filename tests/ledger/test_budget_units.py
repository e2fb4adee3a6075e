"""Budgets are exact integers; whatever is not a positive number is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.events import Gaussian, PoissonGaussian, Repeat
from pft_ray.errors import InputError, PlanError
from pft_ray.ledger import Envelope
from pft_ray.ledger.budget import (
    block_delta_units,
    block_epsilon_units,
    delta_value,
    envelope_delta_units,
    envelope_epsilon_units,
    epsilon_value,
)

CONVERSIONS = [
    block_delta_units,
    block_epsilon_units,
    envelope_delta_units,
    envelope_epsilon_units,
]


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        -1e-5,
        -10,
        0,
        0.0,
        -0.0,
        5e-324,
        2.2e-308,
        True,
        False,
        "0.5",
        None,
        1j,
        np.bool_(True),
        np.float32("nan"),
    ],
)
def test_refuses_what_is_not_a_positive_number(convert, value):
    with pytest.raises(InputError):
        convert(value)


@pytest.mark.parametrize("convert", [block_delta_units, envelope_delta_units])
@pytest.mark.parametrize("value", [1.0, 1, 2.5, 1e300])
def test_refuses_delta_of_one_and_more(convert, value):
    with pytest.raises(InputError):
        convert(value)


def test_known_values():
    assert envelope_epsilon_units(1.0) == 10**9
    assert envelope_epsilon_units(3) == 3 * 10**9
    assert envelope_epsilon_units(np.float64(0.1)) == 10**8
    assert envelope_epsilon_units(1.0000000001) == 10**9 + 1
    assert block_epsilon_units(1.0000000009) == 10**9
    assert envelope_delta_units(1e-5) == 10**13
    assert envelope_delta_units(1e-30) == 1
    assert envelope_epsilon_units(2.2250738585072014e-308) == 1
    assert epsilon_value(1_500_000_000) == 1.5
    assert delta_value(10**13) == 1e-5


def test_ten_deltas_of_1e5_are_exactly_1e4():
    assert 10 * envelope_delta_units(1e-5) == block_delta_units(1e-4)
    assert 3 * envelope_epsilon_units(0.1) == block_epsilon_units(0.3)
    assert 3 * 0.1 != 0.3  # what floats would have done


@pytest.mark.parametrize(
    ("convert", "value"), [(block_epsilon_units, 9e-10), (block_delta_units, 9e-19)]
)
def test_refuses_a_block_of_less_than_one_unit(convert, value):
    with pytest.raises(InputError):
        convert(value)


@settings(deadline=None)
@given(st.floats(min_value=1e-9, max_value=1e12))
def test_epsilon_rounds_up_for_envelopes_and_down_for_blocks(value):
    exact = Fraction(repr(value)) * 10**9
    assert exact <= envelope_epsilon_units(value) < exact + 1
    assert exact - 1 < block_epsilon_units(value) <= exact


@settings(deadline=None)
@given(st.floats(min_value=1e-18, max_value=1, exclude_max=True))
def test_delta_rounds_up_for_envelopes_and_down_for_blocks(value):
    exact = Fraction(repr(value)) * 10**18
    up, down = envelope_delta_units(value), block_delta_units(value)
    assert exact <= up < exact + 1
    assert exact - 1 < down <= exact


def test_a_huge_epsilon_stays_exact():
    assert envelope_epsilon_units(1.7976931348623157e308) == int(
        Fraction("1.7976931348623157e308") * 10**9
    )


@settings(deadline=None)
@given(
    st.floats(min_value=1e-6, max_value=100),
    st.floats(min_value=1e-15, max_value=0.1),
    st.floats(min_value=0.01, max_value=100),
)
def test_an_envelope_survives_json(epsilon, delta, sigma):
    event = Repeat(PoissonGaussian(0.5, sigma), 3)
    envelope = Envelope.priced("b", "training", epsilon, delta, event)
    assert Envelope.from_dict(envelope.to_dict()) == envelope
    assert envelope.epsilon >= epsilon * (1 - 1e-15)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_units": 0},
        {"epsilon_units": -5},
        {"epsilon_units": 1.5},
        {"epsilon_units": True},
        {"delta_units": 0},
        {"purpose": "telemetry"},
        {"block": None},
        {"extra": 1},
    ],
)
def test_refuses_an_envelope_that_is_not_whole(change):
    good = Envelope.priced("b", "training", 1.0, 1e-5, Gaussian(1.0)).to_dict()
    with pytest.raises(InputError):
        Envelope.from_dict({**good, **change})


def test_refuses_an_envelope_with_an_unknown_event():
    good = Envelope.priced("b", "training", 1.0, 1e-5, Gaussian(1.0)).to_dict()
    with pytest.raises(PlanError):
        Envelope.from_dict({**good, "event": {"type": "laplace", "scale": 1}})
