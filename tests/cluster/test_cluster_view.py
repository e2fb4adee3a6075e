"""Snapshots of made-up clusters, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pft_ray.cluster.cluster_view import NodeView, Reading, snapshot_of
from pft_ray.cluster.elastic_settings import NodeKind
from pft_ray.scaling import Node, NodeType, PhaseWork, PriceTable, StepTime
from pft_ray.scaling.prices import PriceRow
from tests.cluster.resizing import limits_of, settings_of

TIMES = (
    {"serial_s": 0.5, "parallel_s": 8.0, "keep_s": 0.0},
    {"serial_s": 0.1, "parallel_s": 2.0, "keep_s": 30.0},
)
SMALL = NodeKind("small", 1, 4, "r1", is_spot=False)
BIG = NodeKind("big", 3, 2, "r2", is_spot=True)
PRICES = PriceTable(
    [
        PriceRow("small", "r1", 0.25),
        PriceRow("big", "r2", 0.75),
        PriceRow("big", "r2", 0.125, spot=True),
    ]
)


def snapshot(*views, settings=None, **more):
    chosen = {
        "now_s": 50.0,
        "roster": {},
        "step": 0,
        "num_paid_steps_left": 17,
        "step_times": TIMES,
    }
    settings = settings or settings_of(kinds=(SMALL, BIG), phase_steps=(6, 4))
    return snapshot_of(settings, views, Reading(**(chosen | more)))


def kinds(**more):
    return settings_of(**({"kinds": (SMALL, BIG), "max_nodes": None} | more))


def available(taken):
    return {kind.name: kind.num_available for kind in taken.node_types}


# -- work that is left ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (0, [6, 4]),
        (1, [5, 4]),
        (5, [1, 4]),
        (6, [4]),
        (9, [1]),
        (10, []),
        (11, []),
    ],
)
def test_phases_that_are_left_by_the_steps_that_were_made(step, left):
    times = [StepTime(0.5, 8.0), StepTime(0.1, 2.0)][2 - len(left) :] if left else []
    expected = [PhaseWork(n, each) for n, each in zip(left, times, strict=True)]
    assert list(snapshot(step=step).work) == expected


def test_nothing_is_known_of_the_work_before_steps_were_measured():
    assert snapshot(step_times=()).work == ()


def test_what_was_read_is_passed_on():
    taken = snapshot(now_s=123.0, num_paid_steps_left=9, last_resize_s=45.0)
    read = (taken.now_s, taken.num_paid_steps_left, taken.last_resize_s)
    assert read == (123.0, 9, 45.0)


# -- nodes that are there ------------------------------------------------------------


def test_nodes_have_their_slots_workers_and_prices():
    taken = snapshot(
        NodeView("a", "small", 2, region="r1"),
        NodeView("b", "big", 3, region="r2", is_spot=True),
        NodeView("c", "big", 3, region="r2"),
        NodeView("d", "big", 3, region="r1"),
        settings=kinds(prices=PRICES),
        roster={"a": 1, "b": 3},
    )
    assert taken.num_workers == 4
    assert taken.nodes == (
        Node("a", 2, 1, "r1", 0.25, is_spot=False),
        Node("b", 3, 3, "r2", 0.125, is_spot=True),
        Node("c", 3, 0, "r2", 0.75, is_spot=False),
        Node("d", 3, 0, "r1", None, is_spot=False),
    )


def test_without_a_price_file_no_price_is_guessed():
    taken = snapshot(NodeView("a", "small", 2, region="r1"))
    prices = [each.price_per_hour for each in (*taken.nodes, *taken.node_types)]
    assert prices == [None, None, None]


def test_a_node_without_a_slot_counts_only_while_it_holds_workers():
    """The room of a node may be read later than its workers."""
    taken = snapshot(
        NodeView("a", "small", 0),
        NodeView("b", "small", 0),
        NodeView("c", "small", 1),
        roster={"b": 1, "c": 2},
    )
    assert [(n.node_id, n.num_slots, n.num_workers) for n in taken.nodes] == [
        ("b", 1, 1),
        ("c", 2, 2),
    ]


def test_workers_of_a_node_that_is_gone_still_count():
    taken = snapshot(NodeView("a", "small", 1), roster={"a": 1, "gone": 2})
    assert taken.num_workers == 3
    assert [node.num_workers for node in taken.nodes] == [1]


def test_a_draining_node_leaves_when_it_was_said_or_else_within_a_minute():
    taken = snapshot(
        NodeView("stays", "small", 1),
        NodeView("drains", "small", 1, is_draining=True),
        NodeView("drains soon", "small", 1, is_draining=True, leaves_in_s=12.0),
        NodeView("now", "small", 1, is_draining=True, leaves_in_s=0.0),
        NodeView("warned", "small", 1, leaves_in_s=90.0),
    )
    leaves = {node.node_id: node.leaves_in_s for node in taken.nodes}
    assert leaves == {
        "stays": None,
        "drains": 60.0,
        "drains soon": 12.0,
        "now": 0.0,
        "warned": 90.0,
    }


# -- nodes that start, and that may be added -----------------------------------------


def test_pending_nodes_count_by_their_slots():
    assert snapshot(pending={"small": 2, "big": 1}).num_pending_slots == 5


def test_pending_nodes_outside_of_the_regions_are_no_slots():
    settings = kinds(limits=limits_of(allowed_regions=frozenset({"r1"})))
    taken = snapshot(settings=settings, pending={"small": 2, "big": 1})
    assert taken.num_pending_slots == 2


def test_pending_nodes_of_a_kind_that_holds_no_worker_are_no_slots():
    assert snapshot(pending={"other": 3}).num_pending_slots == 0


def test_a_kind_says_what_one_node_offers_and_costs():
    taken = snapshot(settings=kinds(prices=PRICES, node_start_s=7.0))
    assert taken.node_types == (
        NodeType("small", 1, 4, "r1", 0.25, is_spot=False, start_s=7.0),
        NodeType("big", 3, 2, "r2", 0.125, is_spot=True, start_s=7.0),
    )


def test_nodes_that_are_there_or_pending_can_not_be_added_again():
    views = [NodeView("a", "small", 1), NodeView("b", "small", 1)]
    taken = snapshot(*views, settings=kinds(), pending={"small": 1})
    assert available(taken) == {"small": 1, "big": 2}


def test_more_nodes_than_a_kind_allows_leave_none_to_add():
    views = [NodeView(name, "small", 1) for name in "abcde"]
    assert available(snapshot(*views, settings=kinds()))["small"] == 0


@pytest.mark.parametrize(
    ("max_nodes", "expected"),
    [
        (9, {"small": 3, "big": 2}),
        (5, {"small": 2, "big": 2}),
        (4, {"small": 1, "big": 1}),
        (3, {"small": 0, "big": 0}),
        (1, {"small": 0, "big": 0}),
    ],
)
def test_the_clusters_own_limit_caps_every_kind(max_nodes, expected):
    """One small node, one of another kind, and one that starts: three in all."""
    views = [NodeView("a", "small", 1), NodeView("b", "other", 1)]
    settings = kinds(max_nodes=max_nodes)
    taken = snapshot(*views, settings=settings, pending={"other": 1})
    assert available(taken) == expected


def test_the_head_is_no_node_of_the_limit():
    head = NodeView("head", "small", 1, is_head=True)
    taken = snapshot(head, settings=kinds(max_nodes=2))
    assert available(taken) == {"small": 2, "big": 2}
    assert [node.node_id for node in taken.nodes] == ["head"], "it may hold workers"


# -- the pause of a resize -----------------------------------------------------------


@pytest.mark.parametrize(
    ("roster", "times", "pause_s"),
    [
        ({"a": 3}, TIMES, 11.0),
        ({"a": 1}, TIMES, 31.0),
        ({}, TIMES, 31.0),
        ({"a": 3}, TIMES[:1], 1.0),
        ({"a": 3}, (), 1.0),
    ],
)
def test_a_resize_pauses_for_the_frozen_parts_too(roster, times, pause_s):
    """The longest phase's 30 s, shared by the workers, beside 1 s for the rest."""
    taken = snapshot(roster=roster, step_times=times)
    assert taken.limits.resize_s == pytest.approx(pause_s)
    assert replace(taken.limits, resize_s=1.0) == limits_of(), "and nothing else"
