"""The picture of a run's sizes."""

from __future__ import annotations

import json
import stat
from xml.etree import ElementTree

from pft_ray.cluster.scaling_plot import SCALING_PLOT, size_curve, write_scaling_plot

EVENTS = [
    {"time": 10.0, "event": "started"},
    {"time": 11.0, "event": "scaling", "action": "grow", "workers": 1},
    {"time": 12.0, "event": "charged", "charged": 5, "run_id": "secret-name"},
    {"time": 13.0, "event": "resized", "step": 5, "num_workers": [1, 2]},
    {"time": 14.0, "event": "scaling", "action": "hold", "workers": 2},
    {"time": 15.0, "event": "scaling", "action": "note", "workers": 2, "reason": "r"},
    {"time": 16.0, "event": "ended", "status": "completed"},
]


def write(folder, events):
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(text)


def test_the_curve_holds_every_change_of_size_once():
    assert size_curve(EVENTS) == [(11.0, 1), (13.0, 2)]


def test_the_picture_is_svg_for_the_operator_alone(tmp_path):
    write(tmp_path, EVENTS)
    write_scaling_plot(tmp_path)
    path = tmp_path / SCALING_PLOT
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"secret-name" not in path.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"events.jsonl", SCALING_PLOT}


def test_a_run_without_decisions_gets_no_picture(tmp_path):
    write(tmp_path, EVENTS[:1])
    write_scaling_plot(tmp_path)
    assert not (tmp_path / SCALING_PLOT).exists()
