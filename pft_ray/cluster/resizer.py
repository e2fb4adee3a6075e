"""Turns scaling decisions into requests, boundaries and resizes of one run.

It knows no Ray: nodes and the coordinator are arguments. The order of a planned
resize: the policy asks for another size; nodes for it are requested and awaited; the
coordinator withholds the next grant; the workers save, see their checkpoint
registered, and park; the coordinator approves; the group is started anew.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pft_ray.cluster.cluster_view import NodeView, Reading, snapshot_of
from pft_ray.cluster.faults import NODE_LOSS
from pft_ray.errors import PlacementError, ScalingError
from pft_ray.scaling import Grow, Hold, Shrink, decide, guarded, load_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pft_ray.cluster.elastic_settings import ElasticSettings
    from pft_ray.scaling import ClusterSnapshot, Decision, Policy

_LOOK_EVERY_S = 1.0
_DRAIN_S = 60.0
_SETTLE_S = 3.0
_MOST_STARTS = 3
_MOST_DOUBT_S = 60.0
_ASK_EVERY_S = 30.0
_AWAITING = ("pending", "replacement-pending", "early")


class Nodes(Protocol):
    """The cluster, as far as a resize touches it."""

    def views(self, roster: Mapping[str, int]) -> list[NodeView]:
        """Returns the nodes that are alive; ``roster`` is what the run holds there."""

    def num_pending(self) -> Mapping[str, int]:
        """Returns the nodes of each type that are being launched."""

    def answers(self, node_id: str) -> bool:
        """Says whether a node that counts as alive really answers."""

    def ask(self, num_workers: int) -> None:
        """Asks for room for that many workers, and holds it."""

    def cannot_add(self) -> bool:
        """Says whether the cluster finds that it cannot meet what is asked for."""

    def drain(self, node_id: str, reason: str, deadline_s: float) -> None:
        """Lets a node go that holds nobody else."""


class Line(Protocol):
    """The coordinator, as far as a resize needs it."""

    def scaling_view(self) -> dict[str, Any]:
        """Returns steps, payments, step times and the state of the boundary."""

    def want_boundary(self, num_workers: int) -> bool:
        """Asks the workers to save and wait before their next grant."""

    def warn_of_leaving(self, is_leaving: bool) -> None:  # noqa: FBT001 - a remote call
        """Lets workers save at once when a node of theirs is about to leave."""

    def approve_resize(self, num_workers: int) -> bool:
        """Lets the parked group be ended."""

    def give_up_boundary(self) -> None:
        """Lets the workers go on as they are."""

    def expect_new_roster(self, public_cause: str) -> None:
        """Notes a public cause for the next change of roster."""

    def tell_scaling(self, told: dict[str, Any], *, is_new: bool) -> None:
        """Tells the operator what was decided and why."""


@dataclass
class Resizer:
    """The scaling side of one run.

    Attributes:
        settings: What the job says.
        nodes: The cluster.
        line: The coordinator.
        clock: Monotonic seconds.
    """

    settings: ElasticSettings
    nodes: Nodes
    line: Line
    clock: Callable[[], float] = time.monotonic
    _policy: Policy = field(init=False)
    _roster: dict[str, int] = field(default_factory=dict)
    _size: int = field(init=False)
    _target: Grow | Shrink | None = None
    _since: float = field(init=False)
    _started: float = field(init=False)
    _looked: float = float("-inf")
    _resized: float | None = None
    _asked: tuple[int, float] = (-1, float("-inf"))
    _told: tuple[Any, ...] = ()
    _is_warned: bool = False
    _is_first: bool = True
    _is_judged: bool = False
    _starts: int = 0
    _silent: frozenset[str] = frozenset()
    _step_times: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._policy = _policy(self.settings.policy)
        self._size = self.settings.start_workers
        self._since = self._started = self.clock()
        limit = self.settings.limits.deadline_s
        if limit is not None:
            limits = replace(self.settings.limits, deadline_s=self._started + limit)
            self.settings = replace(self.settings, limits=limits)

    # -- a group that is not running -------------------------------------------

    def at_start(self) -> int | None:
        """Returns the size to start a group with; None to ask again soon.

        Raises:
            PlacementError: The minimum did not find room in time.
        """
        self._target = None
        if not self._is_loss_clear():
            return None
        waited, limits = self.clock() - self._since, self.settings.limits
        # The ended group holds no room any more; it may take a moment until that shows.
        room = self._room(self.nodes.views({}))
        wanted = max(self._size, limits.floor)
        size = min(wanted, room, limits.max_workers)
        patience_s = self.settings.node_start_s if self._is_first else _SETTLE_S
        is_stuck = size < limits.floor or self._starts >= _MOST_STARTS
        if is_stuck and waited > self.settings.placement_timeout_s:
            raise self._no_room(room, waited)
        if size >= limits.floor and (size == wanted or waited > patience_s):
            self._ask(size)
            self._start(size)
            return size
        self._ask(wanted)
        return None

    def _no_room(self, room: int, waited_s: float) -> PlacementError:
        return PlacementError(
            f"The run needs room for {self.settings.limits.floor} workers of "
            f"{self.settings.cpus_per_worker:g} CPUs and found {room}; it did not "
            f"start within {waited_s:.0f} s.",
            "Lower what is asked for: the autoscaler finds more than the cluster may "
            "have, or a label that no node type has. Then run the same command again."
            if self.nodes.cannot_add()
            else "Add nodes and run the same command again: it resumes.",
        )

    def _start(self, size: int) -> None:
        if size != self._size:
            self._tell_words(f"Starting {size} workers: there is room for no more.")
        self._size, self._resized = size, self.clock()
        self._starts += 1

    def _is_loss_clear(self) -> bool:
        """Finds out whether nodes of the last roster were lost; False while in doubt.

        A node that does not answer any more counts as alive until Ray notices it.
        """
        if not self._roster:
            return True
        alive = {view.node_id for view in self.nodes.views(self._roster)}
        lost = set(self._roster) - alive
        silent = {n for n in alive & set(self._roster) if not self.nodes.answers(n)}
        if silent and self.clock() - self._since < _MOST_DOUBT_S:
            return False
        was_judged, self._is_judged = self._is_judged, True
        if lost or silent:
            # What goes away after a group has ended was not what ended it.
            if not was_judged:
                self.line.expect_new_roster(NODE_LOSS)
            self._drop(lost | silent)
            self._silent |= silent
            self._tell_words(f"{len(lost | silent)} node(s) of the run were lost.")
        return True

    def _drop(self, node_ids: set[str] | frozenset[str]) -> None:
        """Forgets nodes of the roster, so that nobody takes them for lost later."""
        kept = {n: k for n, k in self._roster.items() if n not in node_ids}
        self._roster = kept

    # -- a running group -------------------------------------------------------

    def while_running(self, roster: Mapping[str, int]) -> int | None:
        """Returns the size to resize the running group to at once; None for none.

        Args:
            roster: Workers of the run by node id.
        """
        self._since = self.clock()
        if roster:
            self._roster, self._size = dict(roster), sum(roster.values())
            self._is_first, self._silent = False, frozenset()
            self._is_judged, self._starts = False, 0
        if self._since - self._looked < _LOOK_EVERY_S:
            return None
        self._looked = self._since
        view = self.line.scaling_view()
        self._step_times = view["step_times"] or self._step_times
        nodes, stage = self.nodes.views(self._roster), view["boundary"]["stage"]
        self._warn(nodes)
        if self._target is not None:
            self._ask_again()
            return self._pursue(self._target, stage, nodes)
        if view["is_stopping"]:
            return None
        snapshot = self._snapshot(view, nodes)
        decision = self._decide(snapshot)
        self._tell(decision, snapshot)
        self._act(decision, stage)
        return None

    def close(self) -> None:
        """Gives back what was asked for, and says whether nodes were lost at the end.

        A group that has used up its failures is not started again, and why it ended
        is told to the ledger all the same.
        """
        with contextlib.suppress(Exception):
            self._is_loss_clear()
        self.nodes.ask(0)

    def _snapshot(self, view: dict[str, Any], nodes: list[NodeView]) -> ClusterSnapshot:
        reading = Reading(
            now_s=self.clock(),
            roster=self._roster,
            step=view["step"],
            num_paid_steps_left=view["num_steps_left"],
            step_times=self._step_times,
            pending=self.nodes.num_pending(),
            last_resize_s=self._resized,
        )
        return snapshot_of(self.settings, nodes, reading)

    def _decide(self, snapshot: ClusterSnapshot) -> Decision:
        if not self._step_times:
            return Hold("The workers measure made-up steps first.", code="early")
        return self._policy(snapshot)

    def _act(self, decision: Decision, stage: str) -> None:
        if isinstance(decision, Hold):
            if stage not in ("none", "approved"):
                # Asked for, and the reply was lost: nobody goes on with it.
                self.line.give_up_boundary()
            if decision.code in _AWAITING:
                self._ask_again()
            else:
                # A running group holds its nodes by itself, and an asked-for floor
                # may hold other ones that are idle.
                self._ask(0)
            return
        self._ask(max(self._size, decision.num_workers))
        if isinstance(decision, Grow) and decision.add:
            return
        # One that is approved belongs to the resize that is being made.
        if stage != "approved" and self.line.want_boundary(decision.num_workers):
            self._target = decision

    def _pursue(
        self, target: Grow | Shrink, stage: str, views: list[NodeView]
    ) -> int | None:
        """Goes on with a resize that was begun.

        An approval whose reply was lost is found as the stage of the next look.
        """
        if stage == "none":  # the workers gave it up, or began anew
            self._target = None
            return None
        stay = [view for view in views if view.node_id not in target.leave]
        if self._room(stay) < target.num_workers:
            self.line.give_up_boundary()
            self._target = None
            self._tell_words("The room for the resize is gone; the run goes on.")
            return None
        if stage not in ("parked", "approved"):
            return None
        if stage == "parked" and not self.line.approve_resize(target.num_workers):
            self._target = None
            return None
        self._target = None
        self._size, self._resized = target.num_workers, self.clock()
        # The group is waiting for its end: nothing may keep it from that now.
        with contextlib.suppress(Exception):
            self._let_go(target, views)
        with contextlib.suppress(Exception):
            self._ask(target.num_workers)
        self._drop(set(target.leave))
        return target.num_workers

    def _let_go(self, target: Grow | Shrink, views: list[NodeView]) -> None:
        """Drains nodes that are left, so that the new group is not put there."""
        kinds = {kind.name for kind in self.settings.kinds}
        for view in views:
            # A drained node ends itself: only one that can be added again is let go.
            if view.node_type not in kinds or view.is_draining:
                continue
            if view.node_id in target.leave and view.is_ours:
                self.nodes.drain(view.node_id, "planned resize", _DRAIN_S)

    # -- small things ----------------------------------------------------------

    def _room(self, views: list[NodeView]) -> int:
        """Returns how many workers find room on nodes that stay and may hold them."""
        return sum(
            view.num_slots
            for view in views
            if not view.is_draining
            and view.node_id not in self._silent
            and self.settings.limits.allows(view.region)
        )

    def _ask_again(self) -> None:
        """Keeps what was asked for last from running out."""
        if self._asked[0] > 0:
            self._ask(self._asked[0])

    def _ask(self, num_workers: int) -> None:
        """A standing request runs out by itself, so it is made again now and then."""
        asked, at = self._asked
        if num_workers != asked or self.clock() - at > _ASK_EVERY_S:
            self.nodes.ask(num_workers)
            self._asked = (num_workers, self.clock())

    def _warn(self, views: list[NodeView]) -> None:
        """Says it again while it lasts: the coordinator may have begun anew."""
        is_leaving = any(
            view.is_draining or view.leaves_in_s is not None
            for view in views
            if self._roster.get(view.node_id)
        )
        if is_leaving or self._is_warned:
            self.line.warn_of_leaving(is_leaving)
            self._is_warned = is_leaving

    def _tell(self, decision: Decision, snapshot: ClusterSnapshot) -> None:
        told = decision.to_dict()
        key = (told["action"], told["code"], told.get("num_workers"))
        nodes = [
            {
                "node_id": node.node_id,
                "region": node.region,
                "workers": node.num_workers,
                "slots": node.num_slots,
                "is_spot": node.is_spot,
                "leaves_in_s": node.leaves_in_s,
            }
            for node in snapshot.nodes
        ]
        more = {
            "workers": self._size,
            "nodes": nodes,
            "num_pending_slots": snapshot.num_pending_slots,
        }
        self.line.tell_scaling(told | more, is_new=key != self._told)
        self._told = key

    def _tell_words(self, reason: str) -> None:
        told = {"action": "note", "code": "note", "reason": reason}
        self.line.tell_scaling(told | {"workers": self._size}, is_new=True)


def _policy(name: str | None) -> Policy:
    """Returns the policy to ask; one that cannot be loaded here only holds."""
    if name is None:
        return guarded(decide)
    try:
        return load_policy(name)
    except ScalingError as error:
        held = Hold(error.message, code="policy-failed")
        return lambda _: held
