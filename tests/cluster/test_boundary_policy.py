"""The seam into Ray Train raises nothing but the one error that ends a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

ray_train = pytest.importorskip("ray.train")

from pft_ray.cluster import elastic  # noqa: E402
from pft_ray.cluster.elastic import BoundaryPolicy  # noqa: E402
from pft_ray.errors import (  # noqa: E402
    CoordinatorUnreachableError,
    PlacementError,
    ScalingError,
)
from tests.cluster.resizing import settings_of  # noqa: E402

FAULTS = [CoordinatorUnreachableError("away"), ScalingError("odd"), KeyError("x")]
GROUP = SimpleNamespace(
    placement_group_handle=SimpleNamespace(shutdown=lambda: GONE.append(1)),
    workers=[SimpleNamespace(metadata=SimpleNamespace(node_id=n)) for n in "aab"],
)
GONE: list[int] = []


class Resizer:
    """Answers or raises as it is told."""

    def __init__(self, answer):
        self.answer, self.roster = answer, None

    def at_start(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def while_running(self, roster):
        self.roster = dict(roster)
        return self.at_start()

    def close(self):
        self.at_start()


def policy(answer):
    made = BoundaryPolicy(ray_train.ScalingConfig(num_workers=1), settings_of())
    made._resizer = Resizer(answer)
    return made


@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_the_scaling_side_changes_nothing(error):
    made = policy(error)
    for decision in (
        made.make_decision_for_non_running_worker_group(),
        made.make_decision_for_running_worker_group(GROUP, None),
        made.make_decision_for_running_worker_group(SimpleNamespace(), None),
    ):
        assert type(decision).__name__ == "NoopDecision"
    made.before_controller_abort()


def test_a_run_without_room_ends():
    with pytest.raises(PlacementError):
        policy(PlacementError("none")).make_decision_for_non_running_worker_group()


def test_a_run_that_gets_no_answer_ends_in_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(elastic.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(elastic.time, "sleep", lambda _s: None)
    made = policy(CoordinatorUnreachableError("away"))
    limit = made._settings.placement_timeout_s
    for clock[0] in (1.0, limit, 1.0 + limit):
        decision = made.make_decision_for_non_running_worker_group()
        assert type(decision).__name__ == "NoopDecision"
    clock[0] = 1.1 + limit
    with pytest.raises(PlacementError, match="CoordinatorUnreachableError"):
        made.make_decision_for_non_running_worker_group()


def test_an_answer_in_between_starts_the_time_anew(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(elastic.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(elastic.time, "sleep", lambda _s: None)
    made = policy(KeyError("x"))
    limit = made._settings.placement_timeout_s
    for clock[0], answer in ((1.0, KeyError("x")), (limit, None), (limit + 9, made)):
        made._resizer.answer = KeyError("x") if answer is made else answer
        made.make_decision_for_non_running_worker_group()


def test_places_of_a_group_that_ended_are_given_up_once():
    made = policy(1)
    made.make_decision_for_running_worker_group(GROUP, None)
    before = len(GONE)
    made.make_decision_for_non_running_worker_group()
    made.make_decision_for_non_running_worker_group()
    assert len(GONE) == before + 1


def test_a_size_becomes_a_resize_of_whole_workers():
    made = policy(2)
    decision = made.make_decision_for_running_worker_group(GROUP, None)
    assert (decision.num_workers, decision.resources_per_worker) == (2, {"CPU": 1.0})
    assert made._resizer.roster == {"a": 2, "b": 1}
    none = policy(None).make_decision_for_running_worker_group(GROUP, None)
    assert type(none).__name__ == "NoopDecision"
