"""Snapshots that contradict themselves are refused; the others add up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pft_ray.errors import ScalingError
from pft_ray.scaling import Limits, Node, NodeType, PhaseWork, StepTime
from tests.scaling.clusters import HARDLY, SCALES, nodes, snapshot

BAD = {
    "minimum-above-maximum": (lambda: Limits(5, 4, num_shares=8), "not above"),
    "needed-above-maximum": (
        lambda: Limits(1, 4, needed_workers=5, num_shares=8),
        "Raise max_workers to 5",
    ),
    "fewer-shares-than-workers": (lambda: Limits(1, 9, num_shares=8), "Plan 9 shares"),
    "no-worker": (lambda: Limits(0, 4, num_shares=4), "integer >= 1"),
    "half-a-worker": (lambda: Limits(1, 2.5, num_shares=4), "integer >= 1"),
    "no-region": (
        lambda: Limits(1, 2, num_shares=2, allowed_regions=frozenset()),
        "Name at least one region",
    ),
    "a-word-for-regions": (
        lambda: Limits(1, 2, num_shares=2, allowed_regions="eu-1"),
        "list of regions",
    ),
    "an-empty-region": (
        lambda: Limits(1, 2, num_shares=2, allowed_regions=frozenset({""})),
        "Name at least one region",
    ),
    "negative-slowdown": (
        lambda: Limits(1, 2, num_shares=2, max_slowdown=-0.1),
        ">= 0",
    ),
    "endless-deadline": (
        lambda: Limits(1, 2, num_shares=2, deadline_s=math.inf),
        ">= 0",
    ),
    "negative-price": (lambda: Node("n0", 1, price_per_hour=-1.0), ">= 0"),
    "unknown-price": (lambda: NodeType("t", 1, 1, price_per_hour=math.nan), ">= 0"),
    "true-as-a-price": (lambda: Node("n0", 1, price_per_hour=True), "as a number"),
    "more-workers-than-slots": (lambda: Node("n0", 1, 2), "already uses"),
    "no-name": (lambda: Node("  ", 1), "as a word"),
    "no-time": (lambda: StepTime(0.0, 0.0), "what the probe measured"),
    "negative-steps": (lambda: PhaseWork(-1, SCALES), "integer >= 0"),
    "a-node-twice": (
        lambda: snapshot((Node("a", 1, 1), Node("a", 1))),
        "name of its own",
    ),
    "workers-on-nodes-that-nobody-has": (
        lambda: snapshot(nodes(1, 1), num_workers=1),
        "one reading",
    ),
    "negative-payment": (lambda: snapshot(nodes(1), paid=-1), "integer >= 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_contradiction_is_refused_with_words(name):
    make, words = BAD[name]
    with pytest.raises(ScalingError) as refusal:
        make()
    assert words in refusal.value.fix
    assert refusal.value.exit_code == 2


def test_a_step_takes_its_serial_its_shared_and_its_exchange_part():
    assert StepTime(1.0, 6.0, 0.5).seconds(3) == pytest.approx(1.0 + 2.0 + 1.0)
    assert StepTime(1.0, 6.0, 0.5).seconds(1) == pytest.approx(7.0)


def test_the_floor_is_the_larger_minimum():
    assert Limits(2, 8, needed_workers=3, num_shares=8).floor == 3
    assert Limits(4, 8, needed_workers=3, num_shares=8).floor == 4


def test_only_named_regions_are_allowed_and_an_unknown_one_is_not():
    limits = Limits(1, 2, num_shares=2, allowed_regions=["eu-1"])
    assert limits.allows("eu-1")
    assert not limits.allows("eu-2")
    assert not limits.allows("")
    assert replace(limits, allowed_regions=None).allows("")


@pytest.mark.parametrize(
    ("paid", "steps"),
    [(0, []), (3, [3]), (10, [10]), (14, [10, 4]), (99, [10, 20])],
)
def test_work_ends_where_the_payment_ends(paid, steps):
    seen = snapshot(
        nodes(1), work=(PhaseWork(10, HARDLY), PhaseWork(20, SCALES)), paid=paid
    )
    assert [phase.num_steps for phase in seen.phases_left()] == steps
    assert seen.num_steps_left == sum(steps)
