"""The nodes of a Ray cluster as one run's resizer sees and moves them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

import ray

from pft_ray.cluster.capacity import (
    drain_node,
    live_nodes,
    pending_nodes,
    request_slots,
    requests_are_impossible,
)
from pft_ray.cluster.cluster_view import NodeView
from pft_ray.cluster.elastic_settings import region_selector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.cluster.capacity import NodeFacts
    from pft_ray.cluster.elastic_settings import ElasticSettings

_ANSWER_TIMEOUT_S = 1.0
_ROUNDING = 1e-6


class RayNodes:
    """Reads nodes from Ray's control store, and acts through its autoscaler.

    Args:
        settings: What the job says.
    """

    def __init__(self, settings: ElasticSettings) -> None:
        self._settings = settings
        regions = settings.limits.allowed_regions
        self._selector = region_selector(tuple(sorted(regions)) if regions else None)
        self._places: dict[str, tuple[str, int]] = {}

    def views(self, roster: Mapping[str, int]) -> list[NodeView]:
        """Returns the nodes that are alive; slots of others are not counted."""
        free = _free_resources()
        self._remember_places()
        return [
            self._view(node, free.get(node.node_id, {}), roster.get(node.node_id, 0))
            for node in live_nodes()
        ]

    def num_pending(self) -> Mapping[str, int]:
        """Returns the nodes of each type that are being launched."""
        counts: Counter[str] = Counter()
        for pending in pending_nodes():
            counts[pending.node_type] += pending.count
        return counts

    def answers(self, node_id: str) -> bool:
        """Says whether the node's raylet takes a connection."""
        place = self._places.get(node_id)
        if place is None:
            return True
        try:
            socket.create_connection(place, timeout=_ANSWER_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def ask(self, num_workers: int) -> None:
        """Asks for room for that many workers in the allowed regions, and holds it."""
        request_slots(
            num_workers,
            self._settings.cpus_per_worker,
            self._selector,
            requester=f"pft-{self._settings.run_id}",
        )

    def cannot_add(self) -> bool:
        """Says whether the autoscaler finds that it cannot meet what is asked for."""
        return requests_are_impossible()

    def drain(self, node_id: str, reason: str, deadline_s: float) -> None:
        """Lets a node go; one that is gone already is fine."""
        drain_node(node_id, reason, deadline_s)

    def _view(
        self, node: NodeFacts, free: Mapping[str, float], num_workers: int
    ) -> NodeView:
        cpus = self._settings.cpus_per_worker
        ours = num_workers * cpus
        room = min(node.num_cpus, free.get("CPU", 0.0) + ours)
        leaves = node.drain_deadline_s
        return NodeView(
            node_id=node.node_id,
            node_type=node.node_type,
            num_slots=int(room / cpus + _ROUNDING),
            region=node.region or "",
            is_spot=node.market == "spot",
            is_draining=node.is_draining,
            leaves_in_s=None if leaves is None else max(0.0, leaves - time.time()),
            is_ours=num_workers > 0 and self._is_nobody_elses(node, free, ours),
            is_head=node.is_head,
        )

    def _is_nobody_elses(
        self, node: NodeFacts, free: Mapping[str, float], ours: float
    ) -> bool:
        """Says whether nothing but our workers uses a resource of the node.

        The head, and the node of this controller and its coordinator, are not ours.
        An actor that takes no resource at all is not seen.
        """
        if node.is_head or node.node_id == ray.get_runtime_context().get_node_id():
            return False
        used = _used_resources(node.node_id, free)
        return used.pop("CPU", 0.0) <= ours + _ROUNDING and not used

    def _remember_places(self) -> None:
        for node in ray.nodes():
            if node["Alive"]:
                place = (str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))
                self._places[str(node["NodeID"])] = place


def _free_resources() -> dict[str, dict[str, float]]:
    """Returns what nobody uses, by node."""
    with contextlib.suppress(Exception):
        found: dict[str, dict[str, float]]
        found = ray._private.state.available_resources_per_node()
        return found
    return {}


def _used_resources(node_id: str, free: Mapping[str, float]) -> dict[str, float]:
    """Returns what is used on a node; places of groups are counted as their parts.

    Memory of the object store follows what is stored and tells of no user.
    """
    total = ray._private.state.total_resources_per_node().get(node_id, {})
    return {
        name: amount - free.get(name, 0.0)
        for name, amount in total.items()
        if amount - free.get(name, 0.0) > _ROUNDING
        and name != "object_store_memory"
        and "_group_" not in name
    }
