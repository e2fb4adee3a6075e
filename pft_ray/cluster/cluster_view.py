"""From the nodes of a cluster and a run's state to the snapshot of a decision."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pft_ray.scaling import ClusterSnapshot, Node, NodeType, PhaseWork, StepTime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pft_ray.cluster.elastic_settings import ElasticSettings

_SOON_S = 60.0


@dataclass(frozen=True)
class NodeView:
    """One node that is alive, as this run sees it.

    Attributes:
        node_id: Its id.
        node_type: Its type in the cluster file; empty when it has none.
        num_slots: Workers of the run that it holds, and that would fit beside them.
        region: Its region label; empty when it has none.
        is_spot: Whether it may be taken away.
        is_draining: Whether it is to go.
        leaves_in_s: Seconds until then; None when it stays, or nobody said.
        is_ours: Whether it holds workers of this run and nothing else.
        is_head: Whether it is the head.
    """

    node_id: str
    node_type: str
    num_slots: int
    region: str = ""
    is_spot: bool = False
    is_draining: bool = False
    leaves_in_s: float | None = None
    is_ours: bool = False
    is_head: bool = False


@dataclass(frozen=True)
class Reading:
    """What else a decision is made from, at one moment.

    Attributes:
        now_s: When.
        roster: Workers of the run by node id.
        step: Planned steps that were made.
        num_paid_steps_left: Steps that the allowance still covers.
        step_times: What made-up records cost in each phase; empty before the probe.
        pending: Nodes of each type that are being launched.
        last_resize_s: When the last resize began.
    """

    now_s: float
    roster: Mapping[str, int]
    step: int
    num_paid_steps_left: int
    step_times: Sequence[Mapping[str, float]]
    pending: Mapping[str, int] = field(default_factory=dict)
    last_resize_s: float | None = None


def snapshot_of(
    settings: ElasticSettings, views: Sequence[NodeView], reading: Reading
) -> ClusterSnapshot:
    """Returns the snapshot of a cluster's nodes and a run's state."""
    roster, pending = reading.roster, reading.pending
    allows = settings.limits.allows
    slots = {k.name: k.num_slots for k in settings.kinds if allows(k.region)}
    num_workers = sum(roster.values())
    keep_s = max((times["keep_s"] for times in reading.step_times), default=0.0)
    # A new group computes the frozen parts of its records anew.
    pause_s = settings.limits.resize_s + keep_s / max(1, num_workers)
    return ClusterSnapshot(
        now_s=reading.now_s,
        num_workers=num_workers,
        work=_work(settings.phase_steps, reading.step, reading.step_times),
        num_paid_steps_left=reading.num_paid_steps_left,
        nodes=tuple(
            _node(settings, view, roster.get(view.node_id, 0))
            for view in views
            if view.num_slots or roster.get(view.node_id)
        ),
        node_types=_node_types(settings, views, pending),
        limits=replace(settings.limits, resize_s=pause_s),
        num_pending_slots=sum(slots.get(n, 0) * count for n, count in pending.items()),
        last_resize_s=reading.last_resize_s,
    )


def _work(
    phase_steps: Sequence[int], step: int, step_times: Sequence[Mapping[str, float]]
) -> tuple[PhaseWork, ...]:
    """Returns the phases that are left; a run that measured nothing has none."""
    work, end = [], 0
    for num_steps, times in zip(phase_steps, step_times, strict=False):
        end += num_steps
        left = min(num_steps, end - step)
        if left > 0:
            step_time = StepTime(times["serial_s"], times["parallel_s"])
            work.append(PhaseWork(left, step_time))
    return tuple(work)


def _node(settings: ElasticSettings, view: NodeView, num_workers: int) -> Node:
    leaves = view.leaves_in_s
    if view.is_draining and leaves is None:
        leaves = _SOON_S
    return Node(
        view.node_id,
        max(view.num_slots, num_workers),
        num_workers,
        view.region,
        settings.price(view.node_type, view.region, is_spot=view.is_spot),
        view.is_spot,
        leaves,
    )


def _node_types(
    settings: ElasticSettings, views: Sequence[NodeView], pending: Mapping[str, int]
) -> tuple[NodeType, ...]:
    there = Counter(view.node_type for view in views if not view.is_head)
    there.update(pending)
    room = None
    if settings.max_nodes is not None:
        room = max(0, settings.max_nodes - sum(there.values()))
    kinds = []
    for kind in settings.kinds:
        available = max(0, kind.max_nodes - there[kind.name])
        kinds.append(
            NodeType(
                kind.name,
                kind.num_slots,
                available if room is None else min(available, room),
                kind.region,
                settings.price(kind.name, kind.region, is_spot=kind.is_spot),
                kind.is_spot,
                settings.node_start_s,
            )
        )
    return tuple(kinds)
