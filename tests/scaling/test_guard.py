"""Plug-ins that raise, answer nonsense or break a rule: the run holds and goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pft_ray.errors import ScalingError
from pft_ray.scaling import (
    Grow,
    Hold,
    Node,
    NodeType,
    PhaseWork,
    Shrink,
    decide,
    guarded,
    load_policy,
)
from tests.scaling.clusters import SCALES, limits_of, nodes, snapshot

KIND = NodeType("small", 1, 3, start_s=40.0)
SEEN = snapshot(nodes(1, 1, 0), work=(PhaseWork(2000, SCALES),), kinds=(KIND,))
FEW = replace(SEEN, num_paid_steps_left=5)


def answered(answer, seen=SEEN):
    return guarded(lambda _: answer)(seen)


def test_the_text_of_an_exception_is_not_repeated():
    def fail(_):
        raise RuntimeError("secret words of a record")

    decision = guarded(fail)(SEEN)
    assert (decision.reason, decision.code) == (
        "The policy raised RuntimeError.",
        "policy-failed",
    )


GOOD = {
    "hold": Hold("Wait."),
    "grow-here": Grow(3, (), "More.", None),
    "grow-new": Grow(4, (("small", 1),), "More.", None),
    "shrink": Shrink(1, ("n0",), "Less.", None),
    "move": Shrink(2, ("n0",), "Elsewhere.", None),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_lawful_answer_passes_and_is_assessed(name):
    decision = answered(GOOD[name])
    assert type(decision) is type(GOOD[name])
    assert decision.reason == GOOD[name].reason
    if not isinstance(decision, Hold):
        assert decision.impact.num_workers_after == GOOD[name].num_workers


BAD = {
    "nothing": None,
    "a-word": "grow",
    "a-class": Grow,
    "no-text": Hold(3),
    "below-the-floor": Shrink(0, ("n0",), "", None),
    "above-the-maximum": Grow(9, (("small", 3),), "", None),
    "more-than-slots": Grow(4, (), "", None),
    "more-than-new-slots": Grow(5, (("small", 1),), "", None),
    "no-change": Shrink(2, (), "", None),
    "shrinks-upwards": Shrink(3, (), "", None),
    "grows-downwards": Grow(1, (), "", None),
    "a-kind-that-is-not-there": Grow(4, (("large", 1),), "", None),
    "more-nodes-than-there-are": Grow(8, (("small", 5),), "", None),
    "minus-a-node": Grow(3, (("small", -1),), "", None),
    "a-kind-twice": Grow(5, (("small", 1), ("small", 1)), "", None),
    "a-node-that-is-not-there": Shrink(1, ("n9",), "", None),
    "half-a-worker": Grow(2.5, (), "", None),
    "true-workers": Shrink(True, ("n0",), "", None),
    "no-list": Grow(4, "small", "", None),
    "leaves-too-much": Shrink(2, ("n0", "n1"), "", None),
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_becomes_a_hold(name):
    decision = answered(BAD[name])
    assert isinstance(decision, Hold)
    assert decision.code == "policy-rejected"
    assert decision.impact is None


def test_growth_that_cannot_pay_for_itself_is_refused():
    assert isinstance(answered(GOOD["grow-new"]), Grow)
    assert "too late" in answered(GOOD["grow-new"], FEW).reason


def test_a_forbidden_region_is_refused():
    limits = limits_of(allowed_regions=frozenset({"eu-1"}))
    held = (Node("a", 1, 1, "eu-1"), Node("b", 1, 0, "us-1"), Node("c", 1))
    seen = replace(SEEN, nodes=held, num_workers=1, limits=limits)
    assert answered(Grow(2, (), "", None), seen).code == "policy-rejected"
    assert answered(Grow(2, (("small", 1),), "", None), seen).code == "policy-rejected"
    outside = (
        Node("a", 1, 1, "eu-1"),
        Node("b", 1, 1, "us-1"),
        Node("c", 1, 0, "eu-1"),
    )
    seen = replace(seen, nodes=outside, num_workers=2)
    assert answered(Shrink(1, ("a",), "", None), seen).code == "policy-rejected"
    assert isinstance(answered(Shrink(1, ("b",), "", None), seen), Shrink)


def test_a_price_above_the_limit_is_refused():
    held = nodes(1, 1, 0, price_per_hour=1.0)
    seen = replace(SEEN, nodes=held, limits=limits_of(max_price_per_hour=2.5))
    assert "costs more" in answered(Grow(3, (), "", None), seen).reason
    seen = replace(seen, limits=limits_of(max_price_per_hour=3.0))
    assert isinstance(answered(Grow(3, (), "", None), seen), Grow)


def test_nodes_are_not_asked_for_twice():
    seen = replace(SEEN, num_pending_slots=1)
    assert answered(GOOD["grow-new"], seen).code == "policy-rejected"


def test_a_long_reason_is_cut_to_one_line():
    decision = answered(Hold("a\nb " * 500))
    assert "\n" not in decision.reason
    assert len(decision.reason) == 300


def test_a_policy_is_loaded_by_name_and_guarded():
    policy = load_policy("pft_ray.scaling.policy:decide")
    assert policy(SEEN) == decide(SEEN)
    assert load_policy("json:dumps")(SEEN).code == "policy-failed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("decide", "package.module:function"),
        ("pft_ray.scaling:", "package.module:function"),
        (":decide", "package.module:function"),
        ("a b:c d", "package.module:function"),
        ("no_such_module_here:decide", "imports on its own"),
        ("pft_ray.scaling.policy:nothing", "takes a ClusterSnapshot"),
        ("pft_ray.scaling.policy:__all__", "takes a ClusterSnapshot"),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_refused(name, words):
    with pytest.raises(ScalingError) as refusal:
        load_policy(name)
    assert words in refusal.value.fix


def test_a_module_that_raises_keeps_its_words(tmp_path, monkeypatch):
    (tmp_path / "loud_policy.py").write_text("raise ValueError('private words')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ScalingError) as refusal:
        load_policy("loud_policy:decide")
    assert "private words" not in str(refusal.value)
    assert "ValueError" in refusal.value.message
