"""The boundary of a planned resize as a machine of its own, with a made-up clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.cluster.boundary import Boundary


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def boundary(clock):
    return Boundary(patience_s=10.0, clock=clock)


def parked_at(boundary, step):
    boundary.want(2)
    assert boundary.withhold(step)
    assert boundary.park(step)
    return boundary


def test_no_grant_is_withheld_unless_a_boundary_is_wanted(boundary):
    assert not boundary.withhold(4)
    assert not boundary.park(4)
    assert not boundary.approve(2)
    assert not boundary.takes_over(4)


def test_every_rank_that_asks_for_the_step_is_withheld_and_no_other_step(boundary):
    boundary.want(2)
    assert boundary.withhold(4)
    assert boundary.withhold(4)
    assert not boundary.withhold(6)


def test_only_a_parked_group_is_approved(boundary):
    boundary.want(2)
    assert not boundary.approve(2)
    boundary.withhold(4)
    assert not boundary.approve(2), "nothing is saved yet"
    boundary.park(4)
    assert boundary.approve(2)
    assert boundary.takes_over(4)
    assert not boundary.takes_over(2)
    assert not boundary.takes_over(6)


def test_workers_go_on_when_no_resize_comes(boundary, clock):
    parked_at(boundary, 4)
    clock.now = 10.0
    assert boundary.park(4)
    clock.now = 10.1
    assert not boundary.park(4)
    assert boundary.stage == "none"
    assert not boundary.withhold(4)
    assert not boundary.approve(2), "it came too late"


def test_an_approved_resize_that_does_not_come_is_left_too(boundary, clock):
    parked_at(boundary, 4)
    boundary.approve(2)
    clock.now = 599.0
    assert boundary.park(4), "its end is under way"
    clock.now = 601.0
    assert not boundary.park(4)
    assert not boundary.takes_over(4)


def test_a_resize_is_given_up_until_it_is_approved(boundary):
    parked_at(boundary, 4).give_up()
    assert not boundary.park(4)
    parked_at(boundary, 4).approve(2)
    boundary.give_up()
    assert boundary.takes_over(4), "the group may be ending already"


def test_another_attempt_meets_the_boundary_anew(boundary):
    parked_at(boundary, 4).reopened()
    assert boundary.stage == "wanted"
    assert boundary.withhold(2)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["want", "withhold", "park", "approve", "give_up", "reopened", "wait"]
        ),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=300, deadline=None)
def test_a_roster_takes_over_only_where_workers_parked_after_the_last_wish(actions):
    clock = Clock()
    boundary = Boundary(patience_s=2.0, clock=clock)
    parked: set[int] = set()
    for name, step in actions:
        if name == "want":
            boundary.want(step + 1)
        elif name == "withhold":
            boundary.withhold(step)
        elif name == "park":
            if boundary.park(step):
                parked.add(step)
        elif name == "approve":
            boundary.approve(step + 1)
        elif name == "wait":
            clock.now += step
        else:
            getattr(boundary, name)()
        if boundary.stage in ("none", "wanted"):
            parked.clear()
        for place in range(4):
            assert not boundary.takes_over(place) or parked == {place}
