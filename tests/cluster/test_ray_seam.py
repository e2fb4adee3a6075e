"""The seam into Ray Train's inside: if this fails, Ray has changed under it.

It was written against Ray 2.60. Read pft_ray/cluster/elastic.py beside the new Ray,
run tests/ray/test_elastic.py, and then name the new version here.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pft_ray.cluster.elastic import (
    BoundaryPolicy,
    ElasticTrainer,
    controller_environment,
)


def test_the_version_is_the_one_that_was_tested():
    assert ray.__version__.split(".")[:2] == ["2", "60"]


def test_the_trainer_hands_its_policy_to_the_controller_by_name():
    assert issubclass(TorchTrainer, DataParallelTrainer)
    source = inspect.getsource(DataParallelTrainer.fit)
    assert "self._initialize_and_run_controller(" in source
    assert "scaling_policy=" in source
    taken = inspect.signature(TrainController.__init__).parameters
    assert "scaling_policy" in taken
    assert "_initialize_and_run_controller" in vars(ElasticTrainer)


def test_the_policy_answers_what_the_controller_asks():
    assert ScalingPolicy.__abstractmethods__ == {
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
        "_get_num_workers_for_resource_request",
    }
    assert not BoundaryPolicy.__abstractmethods__
    asked = inspect.signature(ScalingPolicy.make_decision_for_running_worker_group)
    assert list(asked.parameters)[1:] == ["worker_group_state", "worker_group_status"]
    assert {f.name for f in fields(ResizeDecision)} == {
        "num_workers",
        "resources_per_worker",
    }
    assert not fields(NoopDecision)


def test_no_request_of_ray_trains_own_is_left_standing():
    """Ray Train would ask for the maximum from its start on, for all of the run."""
    hooks = {n for n in vars(ScalingPolicy) if n.startswith(("after_", "before_"))}
    assert hooks == {
        "after_controller_start",
        "before_controller_shutdown",
        "before_controller_abort",
    }
    assert hooks <= set(vars(BoundaryPolicy))


def test_the_state_of_a_group_has_what_the_policy_reads():
    names = {field.name for field in fields(WorkerGroupState)}
    assert {"workers", "placement_group_handle"} <= names


def test_a_resize_is_executed_without_another_poll():
    """Parked workers must not be taken for workers that are done."""
    source = inspect.getsource(TrainController._step)
    resizing = source.split("isinstance(controller_state, ResizingState)")[1]
    branch = resizing.split("elif")[0]
    assert "_poll_workers" not in branch
    assert "SchedulingState(" in branch


def test_the_variables_reach_the_controller(monkeypatch):
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    with controller_environment():
        sent = constants.get_env_vars_to_propagate()
        assert sent["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
        assert sent["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "30"
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in (
        constants.get_env_vars_to_propagate()
    )
