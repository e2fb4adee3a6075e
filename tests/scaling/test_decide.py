"""Each rule of the policy on a cluster made for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pft_ray.scaling import (
    Grow,
    Hold,
    Node,
    NodeType,
    PhaseWork,
    Shrink,
    StepTime,
    decide,
)
from pft_ray.scaling.policy import near_exhaustion
from tests.scaling.clusters import HARDLY, SCALES, limits_of, nodes, snapshot

KIND = NodeType("small", 1, 8, start_s=40.0)
LONG = (PhaseWork(2000, SCALES),)


def test_free_slots_are_taken_when_they_save_time():
    decision = decide(snapshot(nodes(1, 0, 0, 0), work=LONG))
    assert isinstance(decision, Grow)
    assert (decision.num_workers, decision.add, decision.code) == (4, (), "faster")


def test_nodes_are_asked_for_when_no_slot_is_free():
    decision = decide(snapshot(nodes(1), work=LONG, kinds=(KIND,)))
    assert isinstance(decision, Grow)
    assert decision.add == (("small", decision.num_workers - 1),)


def test_a_phase_that_hardly_scales_gives_its_nodes_back():
    decision = decide(snapshot(nodes(1, 1, 1, 1), work=(PhaseWork(2000, HARDLY),)))
    assert isinstance(decision, Shrink)
    assert (decision.num_workers, decision.code) == (1, "cheaper")
    assert len(decision.leave) == 3


def test_the_phase_under_way_decides_and_not_the_one_after_it():
    work = (PhaseWork(2000, HARDLY), PhaseWork(50_000, SCALES))
    decision = decide(snapshot(nodes(1, 1, 1, 1), work=work))
    assert isinstance(decision, Shrink)
    assert decision.num_workers == 1


def test_a_resize_that_the_next_phase_takes_back_costs_two_pauses():
    # 550 steps of 1.1 s and one pause of 30 s stay within the slowdown, two do not.
    head, limits = PhaseWork(550, HARDLY), limits_of(most=4)
    back = (head, PhaseWork(9000, SCALES))
    assert isinstance(
        decide(snapshot(nodes(1, 1, 1, 1), work=back, limits=limits)), Hold
    )
    same = (head, PhaseWork(9000, HARDLY))
    decision = decide(snapshot(nodes(1, 1, 1, 1), work=same, limits=limits))
    assert isinstance(decision, Shrink)
    assert decision.num_workers == 1


def test_nodes_for_the_next_phase_are_asked_for_at_the_end_of_this_one():
    work = (PhaseWork(2000, HARDLY), PhaseWork(5000, SCALES))
    seen = snapshot(nodes(1), work=work, kinds=(KIND,))
    assert isinstance(decide(seen), Hold)
    late = replace(seen, work=(PhaseWork(50, HARDLY), work[1]))
    decision = decide(late)
    assert isinstance(decision, Grow)
    assert decision.code == "next-phase"
    assert decision.add == (("small", decision.num_workers - 1),)


@pytest.mark.parametrize(("paid", "grows"), [(34, False), (35, True)])
def test_growth_must_be_worth_its_start_before_the_budget_ends(paid, grows):
    # 1 to 2 workers: 4.1 s to 2.102 s a step. Start 40 s, pause 10 s: 40 / 4.1 = 9.76
    # steps are made meanwhile; (R - 9.76) 1.998 >= 50 needs R >= 34.78. With rests
    # off near exhaustion begins at 10 s, so the inequality alone decides.
    kind = replace(KIND, num_available=1)
    limits = limits_of(most=2, resize_s=10.0, min_interval_s=0.0, min_saving=0.0)
    seen = snapshot(nodes(1), work=LONG, paid=paid, kinds=(kind,), limits=limits)
    decision = decide(seen)
    assert isinstance(decision, Grow) == grows
    if not grows:
        assert decision.code == "too-late-to-grow"
        assert decision.impact.num_workers_after == 2


def test_the_payment_and_not_the_plan_says_how_much_is_left():
    seen = snapshot(nodes(1), work=LONG, kinds=(KIND,))
    assert isinstance(decide(seen), Grow)
    assert isinstance(decide(replace(seen, num_paid_steps_left=25)), Hold)


def test_near_exhaustion_a_run_shrinks_without_rest_and_never_grows():
    limits = limits_of(resize_s=5.0, min_interval_s=60.0)
    work = (PhaseWork(40, HARDLY),)
    seen = snapshot(nodes(1, 1, 1, 1), work=work, limits=limits, last_resize_s=999.0)
    assert near_exhaustion(seen)
    decision = decide(seen)
    assert isinstance(decision, Shrink)
    assert decision.code == "near-exhaustion"
    free = snapshot(nodes(1, 0, 0), work=(PhaseWork(10, SCALES),), limits=limits)
    assert near_exhaustion(free)
    assert decide(free).code == "near-exhaustion"
    later = replace(seen, work=(PhaseWork(400, HARDLY),), num_paid_steps_left=400)
    assert not near_exhaustion(later)
    assert decide(later).code == "resized-lately"


@pytest.mark.parametrize(
    ("since", "code"), [(59.0, "resized-lately"), (60.0, "faster")]
)
def test_a_run_rests_after_a_resize(since, code):
    seen = snapshot(nodes(1, 0), work=LONG, last_resize_s=1000.0 - since)
    assert decide(seen).code == code


def test_a_small_saving_is_not_worth_a_resize():
    limits = limits_of(min_saving=0.2)
    seen = snapshot(nodes(1, 1, 1, 1, 1, 1, 1, 0), work=LONG, limits=limits)
    assert isinstance(decide(seen), Hold)
    eager = limits_of(min_saving=0.01, max_slowdown=0.0)
    assert isinstance(decide(replace(seen, limits=eager)), Grow)


def test_the_minimum_of_owners_and_noise_floor_holds_a_shrink():
    work = (PhaseWork(2000, HARDLY),)
    for least, needed, size in ((2, 1, 2), (1, 3, 3)):
        limits = limits_of(least, needed_workers=needed)
        decision = decide(snapshot(nodes(1, 1, 1, 1), work=work, limits=limits))
        assert isinstance(decision, Shrink)
        assert decision.num_workers == size


def test_no_shard_goes_to_a_region_that_is_not_allowed_or_not_known():
    limits = limits_of(allowed_regions=frozenset({"eu-1"}))
    held = (
        Node("home", 1, 1, "eu-1"),
        Node("abroad", 4, 0, "us-1"),
        Node("somewhere", 4, 0),
    )
    kinds = (replace(KIND, region="us-1"), replace(KIND, name="free"))
    decision = decide(snapshot(held, work=LONG, limits=limits, kinds=kinds))
    assert decision.code == "horizontal-closed"
    more = (*held, Node("near", 2, 0, "eu-1"))
    decision = decide(snapshot(more, work=LONG, limits=limits, kinds=kinds))
    assert isinstance(decision, Grow)
    assert (decision.num_workers, decision.add) == (3, ())


def test_workers_in_a_forbidden_region_move_at_once():
    limits = limits_of(2, allowed_regions=frozenset({"eu-1"}))
    held = (Node("home", 1, 1, "eu-1"), Node("abroad", 1, 1, "us-1"))
    seen = snapshot(held, work=LONG, limits=limits, last_resize_s=999.0)
    assert decide(seen).code == "region-blocked"
    kind = replace(KIND, region="eu-1")
    asked = decide(replace(seen, node_types=(kind,)))
    assert isinstance(asked, Grow)
    assert (asked.add, asked.code) == ((("small", 1),), "replace")
    waiting = decide(replace(seen, node_types=(kind,), num_pending_slots=1))
    assert waiting.code == "replacement-pending"
    free = replace(seen, nodes=(*held, Node("new", 1, 0, "eu-1")))
    moved = decide(free)
    assert isinstance(moved, Shrink)
    assert (moved.num_workers, moved.leave) == (2, ("abroad",))
    assert moved.impact.regions_before == ("eu-1", "us-1")
    assert moved.impact.regions_after == ("eu-1",)


def test_a_notice_is_met_before_the_node_goes():
    held = nodes(1, 1, 1)
    held = (replace(held[0], leaves_in_s=120.0), *held[1:])
    seen = snapshot(held, work=LONG, last_resize_s=999.0)
    decision = decide(seen)
    assert isinstance(decision, Shrink)
    assert (decision.num_workers, decision.leave) == (2, ("n0",))
    assert decision.code == "spot-notice"
    # With room elsewhere they all move; growing is a decision for later.
    roomy = replace(seen, nodes=(*held, Node("x", 1), Node("y", 1)))
    moved = decide(roomy)
    assert isinstance(moved, Shrink)
    assert (moved.num_workers, moved.leave) == (3, ("n0",))


def test_a_notice_below_the_minimum_asks_for_a_node_or_waits_at_a_checkpoint():
    held = (replace(nodes(1)[0], leaves_in_s=120.0),)
    seen = snapshot(held, work=LONG)
    stuck = decide(seen)
    assert isinstance(stuck, Hold)
    assert stuck.code == "spot-below-minimum"
    assert "checkpoint" in stuck.reason
    asked = decide(replace(seen, node_types=(KIND,)))
    assert isinstance(asked, Grow)
    assert (asked.add, asked.code) == ((("small", 1),), "replace")
    assert "wait" not in asked.reason
    slow = decide(replace(seen, node_types=(replace(KIND, start_s=100.0),)))
    assert "wait at its checkpoint" in slow.reason


def test_a_notice_after_the_end_of_the_run_changes_nothing():
    held = (replace(nodes(1)[0], leaves_in_s=10_000.0), Node("n1", 1, 1))
    assert decide(snapshot(held, work=LONG)).code != "spot-notice"


def test_a_run_that_stands_still_takes_what_is_there():
    limits = limits_of(2)
    assert decide(snapshot((), work=LONG, limits=limits)).code == "below-minimum"
    decision = decide(snapshot(nodes(0, 0, 0), work=LONG, limits=limits))
    assert isinstance(decision, Grow)
    assert (decision.num_workers, decision.add) == (3, ())
    asked = decide(snapshot(nodes(0), work=LONG, limits=limits, kinds=(KIND,)))
    assert isinstance(asked, Grow)
    assert sum(count for _, count in asked.add) + 1 == asked.num_workers
    waiting = snapshot(nodes(0), work=LONG, limits=limits, num_pending_slots=2)
    assert decide(replace(waiting, node_types=(KIND,))).code == "pending"


def test_a_run_that_stands_still_is_as_fast_as_the_whole_cluster_asks_for():
    # One worker is within 10 % of two, and not of the eight that could be had.
    work = (PhaseWork(5000, StepTime(1.0, 0.2)),)
    seen = snapshot(nodes(0, 0), work=work, limits=limits_of(most=8))
    assert decide(seen).num_workers == 1
    assert decide(replace(seen, node_types=(KIND,))).num_workers == 2


def test_a_run_that_stands_still_meets_its_deadline():
    work = (PhaseWork(1000, SCALES),)
    loose = limits_of(most=4, max_slowdown=10.0)
    seen = snapshot(nodes(0, 0, 0, 0), work=work, limits=loose)
    assert decide(seen).num_workers == 1
    tight = replace(loose, deadline_s=1000.0 + 31.0 + 1000 * SCALES.seconds(3))
    assert decide(replace(seen, limits=tight)).num_workers == 3


def test_the_cheapest_size_within_the_slowdown_is_taken():
    limits = limits_of(most=8, max_slowdown=0.25, resize_s=0.0, min_saving=0.0)
    seen = snapshot(nodes(*[1] * 8), work=(PhaseWork(50_000, SCALES),), limits=limits)
    fastest = SCALES.seconds(8)
    least = min(n for n in range(1, 9) if SCALES.seconds(n) <= 1.25 * fastest)
    decision = decide(seen)
    assert isinstance(decision, Shrink)
    assert decision.num_workers == least


def test_a_deadline_forbids_what_the_slowdown_would_allow():
    work = (PhaseWork(1000, SCALES),)
    loose = limits_of(most=8, max_slowdown=10.0, resize_s=0.0)
    seen = snapshot(nodes(*[1] * 8), work=work, limits=loose)
    assert decide(seen).num_workers == 1
    limit_s = 1000 * SCALES.seconds(3) + 1.0
    tight = replace(loose, deadline_s=1000.0 + limit_s)
    assert decide(replace(seen, limits=tight)).num_workers == 3
    late = replace(seen, nodes=nodes(1, *[0] * 7), num_workers=1, limits=tight)
    decision = decide(late)
    assert (decision.num_workers, decision.code) == (3, "deadline")


def test_dearer_nodes_are_left_first_and_cheaper_kinds_taken_first():
    held = tuple(
        Node(f"n{index}", 1, 1, price_per_hour=price)
        for index, price in enumerate((3.0, 1.0, 2.0))
    )
    limits = limits_of(1, max_slowdown=0.5, resize_s=0.0)
    work = (PhaseWork(2000, HARDLY),)
    assert decide(snapshot(held, work=work, limits=limits)).leave == ("n0", "n2")
    kinds = tuple(
        NodeType(name, 1, 3, price_per_hour=price)
        for name, price in (("dear", 2.0), ("cheap", 0.5))
    )
    decision = decide(snapshot(held[1:2], work=LONG, kinds=kinds))
    assert decision.add[0] == ("cheap", 3)


def test_money_decides_where_there_is_a_price():
    # Two slots cost less on one node than on two, and the other way round with prices.
    held = (Node("wide", 2, 0, price_per_hour=9.0), *nodes(1, 1, price_per_hour=1.0))
    limits = limits_of(2, 2 + 1, max_slowdown=5.0, resize_s=0.0)
    assert isinstance(decide(snapshot(held, work=LONG, limits=limits)), Hold)
    unpriced = tuple(replace(node, price_per_hour=None) for node in held)
    decision = decide(snapshot(unpriced, work=LONG, limits=limits))
    assert isinstance(decision, Shrink)
    assert (decision.code, decision.num_workers) == ("consolidate", 2)


def test_a_node_without_a_price_is_never_chosen_where_others_have_one():
    held = (*nodes(1, price_per_hour=1.0), Node("free", 1))
    decision = decide(snapshot(held, work=LONG, kinds=(KIND,)))
    assert decision.code == "horizontal-closed"
    unknown = (Node("n0", 1, 1), Node("n1", 1, 0, price_per_hour=1.0))
    assert decide(snapshot(unknown, work=LONG)).code == "price-missing"


def test_the_price_an_hour_is_limited():
    held = nodes(1, 1, 1, 0, price_per_hour=1.0)
    cap = limits_of(max_price_per_hour=3.0)
    assert isinstance(decide(snapshot(held, work=LONG, limits=cap)), Hold)
    low = replace(cap, max_price_per_hour=2.0)
    decision = decide(snapshot(held, work=LONG, limits=low))
    assert (decision.num_workers, decision.code) == (2, "price-limit")
    stuck = replace(low, min_workers=3)
    assert decide(snapshot(held, work=LONG, limits=stuck)).code == "price-limit"
    unpriced = snapshot(nodes(1, 0), work=LONG, limits=cap)
    assert decide(unpriced).code == "price-missing"


def test_without_room_to_breathe_the_caller_is_told():
    closed = limits_of(2, 2)
    assert decide(snapshot(nodes(1, 1), limits=closed)).code == "horizontal-closed"
    assert decide(snapshot(nodes(1), work=LONG)).code == "horizontal-closed"
    assert decide(snapshot(nodes(1), work=LONG, num_pending_slots=1)).code == "pending"


def test_a_run_with_more_workers_than_allowed_shrinks():
    seen = snapshot(nodes(1, 1, 1), limits=limits_of(most=2), last_resize_s=999.0)
    decision = decide(seen)
    assert (decision.num_workers, decision.code) == (2, "above-maximum")


@pytest.mark.parametrize("more", [{"paid": 0}, {"work": (PhaseWork(0, SCALES),)}])
def test_a_run_without_steps_left_holds(more):
    assert decide(snapshot(nodes(1, 0), **more)).code == "finished"
