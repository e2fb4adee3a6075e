"""What nodes a Ray cluster has and gets, and the levers that change it. No policy.

All of it needs a connection of this process to the cluster. ``node_types`` of
``pft_ray.cluster.cluster_file`` says what may still be added.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray

from pft_ray.cluster.cluster_file import Labelled
from pft_ray.errors import InputError

# Ray marks the head by a resource of this name.
_HEAD_RESOURCE = "node:__internal_head__"
_TIMEOUT_S = 10.0
# Ray Train sends its own request again after 20 s, and lets it expire after this.
REQUEST_EXPIRES_S = 180.0


@dataclass(frozen=True)
class NodeFacts(Labelled):
    """One node, as the control store knows it.

    Attributes:
        node_id: Its id (hex), the one in the label ``ray.io/node-id``.
        node_type: The name of its type in the cluster file; empty when it was not
            started by the autoscaler.
        num_cpus: CPUs that it offers in all.
        memory_bytes: Memory that it offers. Nodes of one machine each state all of it.
        labels: Its labels.
        is_head: Whether it is the head.
        is_draining: Whether it is to go and takes no new work.
        drain_deadline_s: When it is to be gone, in seconds since 1970; None when it
            does not drain or has no deadline.
    """

    node_id: str
    node_type: str
    num_cpus: float
    memory_bytes: int
    labels: dict[str, str]
    is_head: bool
    is_draining: bool
    drain_deadline_s: float | None


@dataclass(frozen=True)
class PendingNodes:
    """Nodes that are being launched: asked of the provider, or not yet with Ray.

    Attributes:
        node_type: The name of their type in the cluster file.
        count: How many.
    """

    node_type: str
    count: int


def live_nodes() -> list[NodeFacts]:
    """Returns the nodes that are alive, draining ones too; the head first."""
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    deadlines: dict[str, int] = ray._private.state.state.get_draining_nodes()
    nodes = [
        _node_facts(state, deadlines, draining=state.status == NodeStatus.DRAINING)
        for state in _status().cluster_resource_state.node_states
        if state.status != NodeStatus.DEAD
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.node_id))


def pending_nodes() -> list[PendingNodes]:
    """Returns what Ray's autoscaler is launching, by node type.

    The autoscaler reports once per round (5 s, 1 s for nodes of this machine), so a
    request shows here a round later. Empty where no autoscaler runs.
    """
    state = _status().autoscaling_state
    counts: dict[str, int] = {}
    for launch in state.pending_instance_requests:
        name = launch.ray_node_type_name
        counts[name] = counts.get(name, 0) + launch.count
    for instance in state.pending_instances:
        name = instance.ray_node_type_name
        counts[name] = counts.get(name, 0) + 1
    return [PendingNodes(name, count) for name, count in sorted(counts.items())]


def requests_are_impossible() -> bool:
    """Returns whether Ray's autoscaler finds that it cannot meet what is requested.

    It meets all standing requests or none. One that asks for more nodes than the
    maximum, or for a label that no node type has, voids those of everybody: nodes
    that they hold are then taken away as idle. The answer is a round old (5 s, 1 s
    for nodes of this machine).
    """
    return bool(_status().autoscaling_state.infeasible_cluster_resource_constraints)


def request_slots(
    count: int,
    cpus: float,
    label_selector: dict[str, str] | None = None,
    *,
    requester: str,
    expires_s: float = REQUEST_EXPIRES_S,
) -> None:
    """Asks for room for ``count`` workers, and holds the nodes that give it.

    The request is a floor: nodes that it needs are launched and are not taken away
    for being idle. A later call of the same requester replaces it; 0 releases.

    Ray has one standing request per cluster, that of the last caller of
    ``ray.autoscaler.sdk.request_resources``. Ray Train's and Ray Data's coordinating
    actor makes that call every 20 s for everybody who has told it his needs, and so
    wipes out every direct call. Hence this goes through that actor. It adds up the
    requests of all requesters: several jobs do not overwrite one another, and what a
    Train run asks for itself (``num_workers`` of them, the maximum of an elastic run)
    comes on top of this.

    Args:
        count: Number of workers.
        cpus: CPUs of each.
        label_selector: Labels that their nodes must have, such as
            ``{"ray.io/availability-region": "in(eu-central-1,eu-west-1)"}``.
        requester: Who asks; one name per run.
        expires_s: The request ends by itself after this, so that a dead run holds no
            nodes. Call again before.

    Raises:
        InputError: A count below 0, CPUs of 0 or less, or a selector that Ray does
            not take.
    """
    if count < 0 or cpus <= 0:
        raise InputError(
            f"Room for {count} workers of {cpus:g} CPUs was asked for.",
            "Ask for 0 or more workers of more than 0 CPUs.",
        )
    _check_selector(label_selector)
    actor = _coordinating_actor()
    if count == 0:
        done = actor.cancel_request.remote(requester_id=requester)
    else:
        done = actor.request_resources.remote(
            requester_id=requester,
            resources=[{"CPU": float(cpus)}] * count,
            label_selectors=[dict(label_selector or {})] * count,
            expire_after_s=expires_s,
        )
    ray.get(done, timeout=_TIMEOUT_S)


def drain_node(node_id: str, reason: str, deadline_s: float) -> bool:
    """Tells Ray that a node is going away: it takes no new work from now on.

    What runs on it goes on; Ray Train's workers hear of it by
    ``ray.train.get_preemption_info``. The node ends itself as soon as nothing uses it,
    at once when it is idle. Ray does not end it at the deadline: that is for whoever
    takes the machine away. A standing request that needs it gets another node.

    Args:
        node_id: The node (hex).
        reason: Words for logs and status; no private text.
        deadline_s: In how many seconds the node is to be gone.

    Returns:
        Whether Ray accepted it; False for a node that is not alive.
    """
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    # Ray itself accepts any id.
    if node_id not in {node.node_id for node in live_nodes()}:
        return False
    accepted, _ = _gcs_client().drain_node(
        node_id,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        reason,
        int((time.time() + deadline_s) * 1000),
    )
    return bool(accepted)


def _node_facts(state: Any, deadlines: dict[str, int], *, draining: bool) -> NodeFacts:
    node_id = state.node_id.hex()
    resources = dict(state.total_resources)
    deadline_ms = deadlines.get(node_id, 0)
    return NodeFacts(
        node_id=node_id,
        node_type=state.ray_node_type_name,
        num_cpus=resources.get("CPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        labels=dict(state.labels),
        is_head=_HEAD_RESOURCE in resources,
        is_draining=draining,
        drain_deadline_s=deadline_ms / 1000 if deadline_ms else None,
    )


def _check_selector(selector: dict[str, str] | None) -> None:
    from ray._private.label_utils import validate_label_selector

    fault = validate_label_selector(selector) if selector else None
    if fault:
        raise InputError(
            f"Ray does not take the label selector {selector}: {fault}",
            "Write name and value, such as ray.io/market-type: in(spot,on-demand).",
        )


def _status() -> Any:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(_gcs_client().get_cluster_status(timeout_s=_TIMEOUT_S))
    return reply


def _gcs_client() -> Any:
    return ray._private.worker.global_worker.gcs_client


def _coordinating_actor() -> Any:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    return default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
