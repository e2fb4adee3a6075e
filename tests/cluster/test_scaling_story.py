"""The story of a run's sizes, from its events."""

from __future__ import annotations

import json

from pft_ray.cluster.scaling_story import impact_words, read_story

EVENTS = [
    {"time": 1.0, "event": "started"},
    {"time": 2.0, "event": "scaling", "action": "hold", "reason": "a"},
    {"time": 3.0, "event": "scaling", "action": "note", "reason": "b"},
    {"time": 4.0, "event": "scaling", "action": "grow", "reason": "c"},
    {"time": 5.0, "event": "resized", "step": 5, "num_workers": [1, 2]},
]


def test_the_story_counts_decisions_and_lists_resizes(tmp_path):
    path = tmp_path / "events.jsonl"
    assert read_story(path) == {"resizes": [], "scaling_decisions": 0}
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    assert read_story(path) == {
        "resizes": [{"step": 5, "from": 1, "to": 2, "time": 5.0}],
        "scaling_decisions": 2,
    }


def test_money_is_told_in_place_of_node_hours():
    impact = {
        "shares_before": None,
        "shares_after": {"least": 1, "most": 2, "denominator": 3},
        "time_before_s": None,
        "time_after_s": 9.0,
        "money_before": 1.5,
        "money_after": 0.75,
        "node_hours_before": 1.0,
        "node_hours_after": 2.0,
    }
    assert impact_words(impact) == "money 1.50 -> 0.75"
    assert impact_words(None) == ""
