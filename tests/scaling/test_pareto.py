"""The front and the choice against a comparison of all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.scaling.pareto import cheapest, front

PAIRS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=12
)


def arrays(pairs):
    times = np.array([time for time, _, _ in pairs], dtype=float)
    costs = np.array([cost for _, cost, _ in pairs], dtype=float)
    return times, costs, np.array([flag for _, _, flag in pairs], dtype=bool)


@given(PAIRS)
def test_the_front_is_what_nobody_beats(pairs):
    times, costs, _ = arrays(pairs)
    found = {(times[index], costs[index]) for index in front(times, costs)}
    points = set(zip(times.tolist(), costs.tolist(), strict=True))
    unbeaten = {
        point
        for point in points
        if not any(
            other != point and other[0] <= point[0] and other[1] <= point[1]
            for other in points
        )
    }
    assert found == unbeaten
    assert len(front(times, costs)) == len(unbeaten)


@given(PAIRS)
def test_the_cheapest_acceptable_one_is_taken(pairs):
    times, costs, acceptable = arrays(pairs)
    picked = cheapest(times, costs, acceptable)
    if not pairs:
        assert picked is None
    elif acceptable.any():
        rank = [
            (costs[index], times[index], index)
            for index in range(len(pairs))
            if acceptable[index]
        ]
        assert (costs[picked], times[picked], picked) == min(rank)
    else:
        rank = [(times[index], costs[index], index) for index in range(len(pairs))]
        assert (times[picked], costs[picked], picked) == min(rank)


def test_what_takes_forever_is_never_taken():
    times = np.array([np.inf, 3.0])
    costs = np.array([0.0, 5.0])
    assert cheapest(times, costs, np.array([True, True])) == 1
    assert cheapest(times[:1], costs[:1], np.array([True])) is None
