"""Cuts the power of one node of an autoscaling cluster on this machine."""

from __future__ import annotations

import time

import psutil

from pft_ray.cluster.nodes import AutoscalingNodes

# Ray's provider gives it to the node process, which hands it on to all its children.
_NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"


def node_processes(nodes: AutoscalingNodes, node_id: str) -> list[psutil.Process]:
    """Returns the processes of one node: raylet, its agents and its workers."""
    found = []
    for process in nodes.processes():
        try:
            if process.environ().get(_NODE_ID) == node_id:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def kill_node(nodes: AutoscalingNodes, node_id: str) -> list[int]:
    """SIGKILLs all of one node at once; the head and other nodes live on.

    Args:
        nodes: The cluster.
        node_id: Id (hex) of a node that the autoscaler added.

    Returns:
        Process ids of what was killed; empty when the node was gone before.
    """
    assert not node_id.endswith("00000"), "the head is not a node to lose"
    killed: list[int] = []
    # Dead ones have no environment, so a second look finds only what was born since.
    while members := node_processes(nodes, node_id):
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
            killed.append(member.pid)
        time.sleep(0.01)
    return sorted(set(killed))
