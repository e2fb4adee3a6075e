"""Events: the codec, its refusals, and counting of plain events."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.accounting.events import (
    Composed,
    DiscreteGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    PoissonMixture,
    Repeat,
    check_count,
    check_positive,
    check_rate,
    count_leaves,
    event_from_dict,
    event_to_dict,
)
from pft_ray.errors import PlanError

SIGMAS = st.floats(0.01, 1e4)
LEAVES = st.one_of(
    st.builds(Gaussian, SIGMAS),
    st.builds(PoissonGaussian, st.floats(1e-9, 1.0), SIGMAS),
    st.builds(DiscreteGaussian, SIGMAS, st.integers(1, 5000)),
    st.builds(PoissonMixture, st.floats(1e-9, 1.0), SIGMAS, st.integers(1, 1000)),
    st.just(NonPrivate()),
)
EVENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Repeat, inner, st.integers(1, 10**6)),
        st.builds(Composed, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(EVENTS)
def test_codec_round_trip_through_json(event):
    text = json.dumps(event_to_dict(event), allow_nan=False)
    assert event_from_dict(json.loads(text)) == event


@given(EVENTS)
def test_leaves_keep_the_number_of_plain_events(event):
    def total(item):
        match item:
            case Repeat(event=inner, count=count):
                return count * total(inner)
            case Composed(events=events):
                return sum(total(inner) for inner in events)
        return 1

    leaves = count_leaves(event)
    assert sum(count for _, count in leaves) == total(event)
    assert len({leaf for leaf, _ in leaves}) == len(leaves)


def test_sampling_at_rate_one_is_the_plain_gaussian():
    both = Composed((PoissonGaussian(1.0, 2.0), Repeat(Gaussian(2.0), 3)))
    assert count_leaves(both) == ((Gaussian(2.0), 4),)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"type": 3},
        {"type": "laplace", "scale": 1.0},
        {"type": "os.system"},
        {"type": "gaussian"},
        {"type": "gaussian", "noise_multiplier": 1.0, "extra": 1},
        {"type": "gaussian", "noise_multiplier": "1.0"},
        {"type": "gaussian", "noise_multiplier": True},
        {"type": "gaussian", "noise_multiplier": -1.0},
        {"type": "gaussian", "noise_multiplier": 0.0},
        {"type": "gaussian", "noise_multiplier": math.nan},
        {"type": "gaussian", "noise_multiplier": math.inf},
        {"type": "gaussian", "noise_multiplier": 1e-310},
        {"type": "gaussian", "noise_multiplier": None},
        {"type": "poisson_gaussian", "sample_rate": 1.5, "noise_multiplier": 1.0},
        {"type": "poisson_gaussian", "sample_rate": 0, "noise_multiplier": 1.0},
        {"type": "discrete_gaussian", "sigma": 1.0, "sensitivity": 0},
        {"type": "discrete_gaussian", "sigma": 1.0, "sensitivity": 1.5},
        {"type": "non_private", "epsilon": 1},
        {"type": "repeat", "event": {"type": "non_private"}, "count": 0},
        {"type": "repeat", "event": {"type": "non_private"}, "count": -2},
        {"type": "repeat", "event": {"type": "non_private"}, "count": math.nan},
        {"type": "repeat", "event": {"type": "non_private"}, "count": 10**400},
        {"type": "repeat", "count": 2},
        {"type": "composed", "events": [], "count": 1},
        {"type": "composed", "events": {"type": "non_private"}},
        {"type": "composed", "events": [{"type": "unknown"}]},
    ],
)
def test_codec_refuses_what_it_does_not_know(data):
    with pytest.raises(PlanError):
        event_from_dict(data)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, -1, 0, 1e-320, 10**400])
def test_positive_numbers_only(value):
    with pytest.raises(PlanError, match="sigma"):
        check_positive(value, "sigma")


def test_numbers_are_stored_in_one_form():
    """An int, a NumPy number and a float give equal events and equal bytes."""
    forms = [PoissonGaussian(1, 2), PoissonGaussian(np.float64(1), np.float32(2))]
    for event in forms:
        assert json.dumps(event_to_dict(event)) == json.dumps(
            event_to_dict(PoissonGaussian(1.0, 2.0))
        )
    assert type(check_count(np.int64(3), "n")) is int
    assert type(check_count(3.0, "n")) is int
    assert check_rate(1) == 1.0
