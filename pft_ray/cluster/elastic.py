"""The seam into Ray Train: its controller asks our resizer for every size.

Ray Train has no public place for a scaling policy of one's own. The seam is one
overridden method of the trainer and one abstract class; a test names the Ray version
that it was written against.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)

from pft_ray.cluster.actors import call, connect
from pft_ray.cluster.ray_nodes import RayNodes
from pft_ray.cluster.resizer import Resizer
from pft_ray.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.train import ScalingConfig

    from pft_ray.cluster.elastic_settings import ElasticSettings

# Read by Ray Train's controller. The watcher of leaving nodes would end the group at
# the notice's deadline; here a notice becomes a planned resize.
_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}
_CALL_TIMEOUT_S = 5.0
_PAUSE_S = 0.25
_LOG = logging.getLogger("pft_ray.elastic")


class CoordinatorLine:
    """The resizer's line to the coordinator, which may be restarting."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def scaling_view(self) -> dict[str, Any]:
        """Returns steps, payments, step times and the state of the boundary."""
        view: dict[str, Any] = self._call("scaling_view")
        return view

    def want_boundary(self, num_workers: int) -> bool:
        """Asks the workers to save and wait before their next grant."""
        return bool(self._call("want_boundary", num_workers))

    def warn_of_leaving(self, is_leaving: bool) -> None:  # noqa: FBT001 - a remote call
        """Lets workers save at once when a node of theirs is about to leave."""
        self._call("warn_of_leaving", is_leaving)

    def approve_resize(self, num_workers: int) -> bool:
        """Lets the parked group be ended."""
        return bool(self._call("approve_resize", num_workers))

    def give_up_boundary(self) -> None:
        """Lets the workers go on as they are."""
        self._call("give_up_boundary")

    def expect_new_roster(self, public_cause: str) -> None:
        """Notes a public cause for the next change of roster."""
        self._call("expect_new_roster", public_cause)

    def tell_scaling(self, told: dict[str, Any], *, is_new: bool) -> None:
        """Tells the operator what was decided and why."""
        self._call("tell_scaling", told, is_new=is_new)

    def _call(self, method: str, *args: Any, **named: Any) -> Any:
        actor = connect(self._run_id)
        return call(actor, method, *args, timeout_s=_CALL_TIMEOUT_S, **named)


class BoundaryPolicy(ScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """Asks the resizer; lives in Ray Train's controller.

    A fault of the scaling side never ends a run: the group then stays as it is.
    """

    def __init__(
        self, scaling_config: ScalingConfig, settings: ElasticSettings
    ) -> None:
        super().__init__(scaling_config)
        self._settings = settings
        self._resizer: Resizer | None = None
        self._places: Any = None
        self._failing_since: float | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Returns the size to start with; none while there is no room yet.

        Raises:
            PlacementError: The minimum found no room in time.
        """
        try:
            self._free_old_places()
            num_workers = self._the_resizer.at_start()
            self._failing_since = None
        except PlacementError:
            raise
        except Exception as error:  # noqa: BLE001 - see the class
            num_workers = None
            self._hold(error)
            self._give_up_in_time(error)
        if num_workers is None:
            time.sleep(_PAUSE_S)  # the controller asks again without any pause
        return self._resize(num_workers)

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: Any,
        worker_group_status: Any,  # noqa: ARG002 - Ray's signature
    ) -> ScalingDecision:
        """Returns a resize once the workers are parked for it."""
        try:
            self._places = worker_group_state.placement_group_handle
            roster = Counter(
                str(worker.metadata.node_id) for worker in worker_group_state.workers
            )
            return self._resize(self._the_resizer.while_running(roster))
        except Exception as error:  # noqa: BLE001 - see the class
            return self._hold(error)

    def _give_up_in_time(self, error: Exception) -> None:
        """Ends a run that stands still because nothing answers.

        Raises:
            PlacementError: It has done so for as long as a run waits for nodes.
        """
        now = time.monotonic()
        since = self._failing_since = self._failing_since or now
        if now - since > self._settings.placement_timeout_s:
            raise PlacementError(
                f"No size could be decided for {now - since:.0f} s "
                f"({type(error).__name__}).",
                "Look at the cluster; the same command resumes the run.",
            ) from None

    def _free_old_places(self) -> None:
        """Gives up the places of a group that has ended.

        Ray Train frees them when the next group starts. Until then Ray moves those of
        a lost node to other nodes, whose room the next group could not see.
        """
        places, self._places = self._places, None
        if places is not None:
            places.shutdown()

    def _get_num_workers_for_resource_request(self) -> int:
        return self._settings.limits.max_workers

    @property
    def _the_resizer(self) -> Resizer:
        if self._resizer is None:
            nodes = RayNodes(self._settings)
            self._resizer = Resizer(
                self._settings, nodes, CoordinatorLine(self._settings.run_id)
            )
        return self._resizer

    def _resize(self, num_workers: int | None) -> ScalingDecision:
        if num_workers is None:
            return NoopDecision()
        cpus = self._settings.cpus_per_worker
        return ResizeDecision(
            num_workers=num_workers, resources_per_worker={"CPU": cpus}
        )

    def _hold(self, error: Exception) -> ScalingDecision:
        _LOG.warning("no scaling decision: %s", type(error).__name__)
        return NoopDecision()

    # Ray Train would ask for the maximum throughout; the resizer asks for what the
    # policy wants.

    def after_controller_start(self, train_run_context: Any) -> None:
        """Asks for nothing yet."""

    async def before_controller_shutdown(self) -> None:
        """Gives back what was asked for."""
        self._close()

    def before_controller_abort(self) -> None:
        """Gives back what was asked for."""
        self._close()

    def _close(self) -> None:
        try:
            if self._resizer is not None:
                self._resizer.close()
        except Exception as error:  # noqa: BLE001 - the request runs out by itself
            _LOG.warning("the request for nodes stays: %s", type(error).__name__)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """Ray Train's trainer under a policy of ours."""

    def __init__(self, *args: Any, policy: BoundaryPolicy, **named: Any) -> None:
        super().__init__(*args, **named)
        self._policy = policy

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        named["scaling_policy"] = self._policy
        return super()._initialize_and_run_controller(**named)


@contextmanager
def controller_environment() -> Iterator[None]:
    """Sets what the controller of an elastic run reads, for the time of its start."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
