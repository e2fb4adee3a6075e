"""The assessment of a change, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.mechanisms import assign_shares
from pft_ray.scaling import Node, NodeType, PhaseWork, StepTime, assess
from pft_ray.scaling.impact import split_of
from tests.scaling.clusters import limits_of, snapshot

TIME = StepTime(1.0, 4.0)  # 5 s alone, 3 s with two, 2 s with four
HELD = (
    Node("a", 1, 1, "eu-1", 2.0),
    Node("b", 1, 1, "eu-2", 4.0),
    Node("c", 2, 0, "eu-1", 1.0),
)
LIMITS = limits_of(1, 6, num_shares=7, resize_s=20.0)


def seen(**more):
    return snapshot(HELD, work=(PhaseWork(900, TIME),), limits=LIMITS, **more)


def test_time_and_money_of_nodes_that_are_there():
    impact = assess(seen(), 4, HELD)
    assert impact.time_before_s == pytest.approx(900 * 3)
    assert impact.time_after_s == pytest.approx(20 + 900 * 2)
    assert impact.money_before == pytest.approx(900 * 3 * 6 / 3600)
    assert impact.money_after == pytest.approx((20 + 900 * 2) * 7 / 3600)
    assert impact.node_hours_before == pytest.approx(2 * 900 * 3 / 3600)
    assert impact.node_hours_after == pytest.approx(3 * (20 + 900 * 2) / 3600)
    assert (impact.regions_before, impact.regions_after) == (("eu-1", "eu-2"),) * 2
    assert impact.num_steps_executed_twice == 0


def test_steps_go_on_while_a_node_starts():
    # 60 s of start are 20 steps of 3 s; then a pause and 880 steps of 2 s.
    kind = NodeType("k", 2, 3, "us-1", 5.0, start_s=60.0)
    impact = assess(seen(kinds=(kind,)), 4, HELD[:2], ((kind, 1),))
    assert impact.time_after_s == pytest.approx(60 + 20 + 880 * 2)
    assert impact.money_after == pytest.approx((60 + 20 + 880 * 2) * 11 / 3600)
    assert impact.start_s == 60.0
    assert impact.regions_after == ("eu-1", "eu-2", "us-1")


def test_only_paid_steps_are_assessed():
    impact = assess(seen(paid=100), 4, HELD)
    assert impact.num_steps == 100
    assert impact.time_before_s == pytest.approx(300)


def test_shares_and_the_floor():
    impact = assess(seen(), 4, HELD)
    assert (impact.shares_before.least, impact.shares_before.most) == (3, 4)
    assert (impact.shares_after.least, impact.shares_after.most) == (1, 2)
    assert impact.floor_kept
    needy = limits_of(1, 6, needed_workers=3, num_shares=7)
    few = snapshot(HELD, work=(PhaseWork(9, TIME),), limits=needy)
    assert not assess(few, 2, HELD[:2]).floor_kept
    assert not assess(few, 8, HELD).floor_kept


@given(st.integers(1, 200), st.integers(1, 40))
def test_the_split_is_that_of_the_ranks(num_shares, num_workers):
    held = [assign_shares(num_shares, num_workers, rank) for rank in range(num_workers)]
    split = split_of(num_shares, num_workers)
    assert split.least == min(map(len, held))
    assert split.most == max(map(len, held))
    assert split.numerator == sum(part for pairs in held for _, part in pairs)
    assert split.denominator == num_shares


def test_a_run_that_stands_still_has_nothing_before():
    stopped = tuple(Node(n.node_id, n.num_slots) for n in HELD)
    still = snapshot(stopped, work=(PhaseWork(9, TIME),), limits=LIMITS)
    impact = assess(still, 2, stopped[:2])
    assert impact.time_before_s is None
    assert impact.shares_before is None
    assert impact.money_after is None
    assert impact.time_after_s == pytest.approx(20 + 9 * 3)
    json.dumps(impact.to_dict(), allow_nan=False)
