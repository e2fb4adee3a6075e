"""Over random clusters: no decision breaks a hard rule, and decisions come to rest."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.scaling import Grow, Hold, Shrink, decide, guarded
from tests.scaling.clusters import after, healthy_snapshots, snapshots

MANY = settings(max_examples=200, deadline=None)


def bad_nodes(seen):
    """Nodes that hold workers and must not: written out, not asked of the policy."""
    seconds = seconds_left(seen)
    return {
        node.node_id
        for node in seen.nodes
        if node.num_workers
        and (
            not allowed(seen, node.region)
            or (
                node.leaves_in_s is not None
                and node.leaves_in_s < seconds + seen.limits.resize_s
            )
        )
    }


def allowed(seen, region):
    regions = seen.limits.allowed_regions
    return regions is None or (region != "" and region in regions)


def phases_left(seen):
    left = seen.num_paid_steps_left
    for part in seen.work:
        yield min(part.num_steps, left), part.step_time
        left -= min(part.num_steps, left)


def seconds_left(seen):
    if seen.num_workers < floor(seen):
        return float("inf")
    return sum(n * time.seconds(seen.num_workers) for n, time in phases_left(seen))


def floor(seen):
    return max(seen.limits.min_workers, seen.limits.needed_workers)


def pays_for_its_start(seen, size, start_s):
    """The inequality of the rule, step by step."""
    saved, clock = 0.0, 0.0
    for num_steps, time in phases_left(seen):
        now, then = time.seconds(seen.num_workers), time.seconds(size)
        during = min(num_steps, (start_s - clock) / now)
        clock += during * now
        saved += (num_steps - during) * max(0.0, now - then)
    return saved >= (start_s + seen.limits.resize_s) * (1 - 1e-9) - 1e-9


def slots_for(seen, decision):
    """Slots on nodes that may hold workers and are not to be left, and new ones."""
    bad = bad_nodes(seen)
    here = sum(
        node.num_slots
        for node in seen.nodes
        if allowed(seen, node.region)
        and node.node_id not in decision.leave
        and node.node_id not in bad
    )
    kinds = {kind.name: kind for kind in seen.node_types}
    new = 0
    for name, count in getattr(decision, "add", ()):
        assert 1 <= count <= kinds[name].num_available
        assert allowed(seen, kinds[name].region)
        assert seen.num_pending_slots == 0
        new += count * kinds[name].num_slots
    return here + new


@MANY
@given(snapshots())
def test_no_decision_breaks_a_hard_rule(seen):
    decision = decide(seen)
    json.dumps(decision.to_dict(), allow_nan=False)
    if isinstance(decision, Hold):
        return
    size = decision.num_workers
    assert floor(seen) <= size <= seen.limits.max_workers
    assert size <= seen.limits.num_shares
    assert size <= slots_for(seen, decision)
    assert sum(count for count, _ in phases_left(seen)) > 0
    if isinstance(decision, Shrink):
        assert size <= seen.num_workers
        assert bad_nodes(seen) <= set(decision.leave)
    elif seen.num_workers >= floor(seen) and decision.code != "replace":
        assert size > seen.num_workers
        kinds = {kind.name: kind for kind in seen.node_types}
        starts = [kinds[name].start_s for name, _ in decision.add]
        assert pays_for_its_start(seen, size, max(starts, default=0.0))


@MANY
@given(snapshots())
def test_shares_are_whole_at_every_size(seen):
    decision = decide(seen)
    impact = decision.impact
    if impact is None:
        return
    after_it = impact.shares_after
    assert after_it.numerator == after_it.denominator == seen.limits.num_shares
    assert after_it.least >= 1
    assert impact.floor_kept
    assert impact.num_steps_executed_twice == 0
    assert impact.num_steps == sum(count for count, _ in phases_left(seen))


@MANY
@given(snapshots())
def test_a_new_node_has_a_price_where_others_have_one(seen):
    decision = decide(seen)
    places = (*seen.nodes, *seen.node_types)
    if isinstance(decision, Grow) and any(p.price_per_hour is not None for p in places):
        prices = {kind.name: kind.price_per_hour for kind in seen.node_types}
        assert all(prices[name] is not None for name, _ in decision.add)


@MANY
@given(healthy_snapshots())
def test_the_limit_of_the_price_holds(seen):
    limit = seen.limits.max_price_per_hour
    decision = decide(seen)
    if limit is None or isinstance(decision, Hold) or decision.code == "price-limit":
        return
    prices = {kind.name: kind.price_per_hour for kind in seen.node_types}
    new = sum(count * prices[name] for name, count in getattr(decision, "add", ()))
    stay = sum(
        node.price_per_hour
        for node in seen.nodes
        if node.num_workers and node.node_id not in decision.leave
    )
    assert stay + new <= limit * (1 + 1e-6)


@MANY
@given(snapshots())
def test_the_guard_lets_the_policy_pass(seen):
    decision, passed = decide(seen), guarded(decide)(seen)
    assert type(passed) is type(decision)
    assert passed.code == decision.code
    assert passed.reason == decision.reason
    if not isinstance(decision, Hold):
        assert passed.num_workers == decision.num_workers


@MANY
@given(healthy_snapshots(), st.sampled_from([1.0, 600.0]))
def test_decisions_come_to_rest_and_never_swing(seen, wait):
    states = [state_of(seen)]
    for _ in range(30):
        decision = decide(seen)
        if isinstance(decision, Hold) and decision.code != "resized-lately":
            break
        seen = after(seen, decision, wait=wait)
        if isinstance(decision, Hold):
            seen = replace(seen, now_s=seen.now_s + 200.0)
        if state_of(seen) != states[-1]:
            states.append(state_of(seen))
    else:
        raise AssertionError(f"no rest: {states}")
    assert len(set(states)) == len(states), f"back to an earlier state: {states}"
    assert len(states) <= 6


def state_of(seen):
    """Where the workers lie."""
    return frozenset(n.node_id for n in seen.nodes if n.num_workers), seen.num_workers


@MANY
@given(snapshots())
def test_the_same_snapshot_gives_the_same_decision(seen):
    assert decide(seen) == decide(seen)
