"""What a run shows while it goes, from recorded events."""

from __future__ import annotations

import pytest
from rich.console import Console, Group

from pft_ray.cli.train_display import Display, ScalingView

IMPACT = {
    "shares_before": {"least": 2, "most": 2, "numerator": 2, "denominator": 2},
    "shares_after": {"least": 1, "most": 1, "numerator": 2, "denominator": 2},
    "time_before_s": 546.38,
    "time_after_s": 323.72,
    "money_before": None,
    "money_after": None,
    "node_hours_before": 0.1519,
    "node_hours_after": 0.1798,
}
GROW = {
    "time": 1795560889.166,
    "event": "scaling",
    "action": "grow",
    "num_workers": 2,
    "add": [],
    "code": "faster",
    "reason": "2 workers instead of 1 save 41% of the time.",
    "impact": IMPACT,
    "workers": 1,
    "nodes": [
        {
            "node_id": "f" * 50 + "00001",
            "region": "local-a",
            "workers": 1,
            "slots": 2,
            "is_spot": True,
            "leaves_in_s": 31.2,
        }
    ],
    "num_pending_slots": 1,
}
RESIZED = {
    "time": 1795560982.361,
    "event": "resized",
    "step": 5,
    "num_workers": [1, 2],
}


def shown(view: ScalingView) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(Group(*view.parts()))
    return capture.get()


def test_a_log_gets_one_line_for_each_decision_and_resize(capsys):
    display = Display(as_json=False)
    for event in (GROW, RESIZED, {"time": 1.0, "event": "charged"}):
        display.tell(event)
    out, err = capsys.readouterr()
    assert out == ""
    grow, resized = err.splitlines()
    assert grow[8:] == " grow to 2: 2 workers instead of 1 save 41% of the time."
    assert resized[8:] == " resized 1 -> 2 at step 5, same attempt"


def test_json_says_nothing_of_it(capsys):
    display = Display(as_json=True)
    display.tell(GROW)
    assert capsys.readouterr() == ("", "")


def test_nodes_size_and_impact_are_shown():
    view = ScalingView(1, 2)
    boundary = {"stage": "parked", "step": 5, "num_workers": 2}
    view.see({"scaling": GROW, "boundary": boundary})
    view.tell(GROW)
    text = shown(view)
    assert "fff00001" in text
    assert "spot" in text
    assert "1/2" in text
    assert "31 s" in text
    assert "workers 1 of 1-2, 1 slot(s) starting" in text
    assert "resize to 2: saved; the workers wait" in text
    assert "noise shares a rank 2 -> 1 of 2" in text
    assert "time 546 s -> 324 s" in text
    assert "node-hours 0.15 -> 0.18" in text
    assert "money" not in text


def test_a_note_keeps_the_nodes_and_old_lines_give_way():
    view = ScalingView(1, 2)
    view.see({"scaling": GROW})
    note = {"action": "note", "code": "note", "reason": "a node was lost", "workers": 1}
    view.see({"scaling": note})
    for number in range(7):
        view.tell(note | {"event": "scaling", "time": 0.0, "reason": f"note {number}"})
    text = shown(view)
    assert "fff00001" in text
    assert "note 1" not in text
    assert all(f"note {number}" in text for number in range(2, 7))


@pytest.mark.parametrize("stage", ["none", "wanted", "met", "parked", "approved"])
def test_every_stage_of_a_resize_has_words(stage):
    view = ScalingView(1, 2)
    boundary = {"stage": stage, "step": 5, "num_workers": 2}
    view.see({"scaling": GROW, "boundary": boundary})
    assert ("resize to 2" in shown(view)) == (stage != "none")
