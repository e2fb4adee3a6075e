"""What a run's resizes are told as, and when a wish for one is dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pft_ray.cluster.coordinator import Coordinator
from tests.cluster.reserved import reserve

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
GROW = {"action": "grow", "code": "faster", "num_workers": 2}


@pytest.fixture
def coordinator(tmp_path):
    path = str(tmp_path / "events.jsonl")
    return Coordinator(replace(reserve(tmp_path).config(), events_path=path))


def told(coordinator, *kinds):
    lines = Path(coordinator._config.events_path).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        event.pop("time", None)
    return [event for event in events if event["event"] in kinds]


def stage(coordinator):
    return coordinator.scaling_view()["boundary"]["stage"]


def to_boundary(coordinator):
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.want_boundary(2)
    coordinator.request(attempt, 0, A, 3, 6)
    return attempt


def test_a_resize_is_told_once_when_workers_park_and_once_when_it_is_made(coordinator):
    attempt = to_boundary(coordinator)
    for _ in range(3):
        assert coordinator.park(attempt, 0, A, 3)
    parked = {"event": "parked", "step": 3, "num_workers": 1}
    assert told(coordinator, "parked", "resized") == [parked]
    coordinator.approve_resize(2)
    for _ in range(2):
        coordinator.open_attempt([B, C], 3, "resume")
    resized = {"event": "resized", "step": 3, "num_workers": [1, 2]}
    assert told(coordinator, "parked", "resized") == [parked, resized]
    assert stage(coordinator) == "none"
    assert coordinator.request(attempt, 0, B, 3, 6).status == "granted"


def test_the_newest_decision_is_shown_and_a_new_one_is_told(coordinator):
    coordinator.tell_scaling(GROW, is_new=True)
    coordinator.tell_scaling(GROW | {"workers": 1}, is_new=False)
    assert coordinator.status()["scaling"] == GROW | {"workers": 1}
    assert told(coordinator, "scaling") == [{"event": "scaling", **GROW}]


def test_a_wish_stays_when_the_same_workers_open_another_attempt(coordinator):
    """They void a step, and meet the boundary before the next grant."""
    to_boundary(coordinator)
    again = coordinator.open_attempt([A], 0, "void-step")
    assert stage(coordinator) == "wanted"
    assert coordinator.request(again, 0, A, 0, 3).status == "boundary"


def test_a_wish_ends_with_the_workers_it_was_for(coordinator):
    to_boundary(coordinator)
    again = coordinator.open_attempt([B], 0, "resume")
    assert stage(coordinator) == "none"
    assert coordinator.request(again, 0, B, 0, 3).status == "granted"


def test_a_run_that_stops_wants_no_boundary_any_more(coordinator):
    coordinator.open_attempt([A], 0, "start")
    coordinator.request_stop()
    assert coordinator.want_boundary(2), "the size itself would do"
    assert stage(coordinator) == "none"


def test_nothing_is_approved_once_the_run_has_ended(coordinator):
    attempt = to_boundary(coordinator)
    assert coordinator.park(attempt, 0, A, 3)
    coordinator.end_run("failed", 3)
    assert not coordinator.approve_resize(2)


def test_workers_do_not_wait_where_a_later_step_was_charged(coordinator):
    """Their checkpoint lacks steps that were made, or still may be."""
    attempt = to_boundary(coordinator)
    assert coordinator.request(attempt, 0, A, 6, 9).status == "granted"
    assert not coordinator.park(attempt, 0, A, 3)
    assert stage(coordinator) == "none"
    assert not coordinator.approve_resize(2)
