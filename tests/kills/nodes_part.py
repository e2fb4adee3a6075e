"""A driver with an autoscaling cluster of its own, run as a program.

It says what it sees as one JSON object a line. After that it either ends, or waits
to be killed.
"""

from __future__ import annotations

import json
import sys
import time

from pft_ray.cluster.capacity import (
    drain_node,
    live_nodes,
    pending_nodes,
    request_slots,
    requests_are_impossible,
)
from pft_ray.cluster.cluster_file import REGION_LABEL, load_local_nodes
from pft_ray.cluster.local import ray_cluster
from pft_ray.cluster.nodes import AutoscalingNodes
from tests.kills.lost_nodes import kill_node, node_processes

_WAIT_S = 60.0


def say(word, **values):
    sys.stdout.write(json.dumps({"word": word} | values) + "\n")
    sys.stdout.flush()


def added():
    return {node.node_id: node for node in live_nodes() if not node.is_head}


def until(condition):
    """Waits for it; returns how long that took (seconds)."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < _WAIT_S, "it did not come true"
        time.sleep(0.05)
    return time.monotonic() - started


def breathe(nodes):
    """One node comes, dies, is replaced, is drained; all leave when released."""
    assert not added()
    request_slots(1, 1.0, {REGION_LABEL: "in(local-a)"}, requester="test")
    until(pending_nodes)
    came_s = until(added)
    (node,) = added().values()
    say(
        "came",
        seconds=came_s,
        type=node.node_type,
        cpus=node.num_cpus,
        labels=node.labels,
    )
    lost = {process.pid for process in node_processes(nodes, node.node_id)}
    others = {
        process.pid
        for process in nodes.processes()
        if process.name() in ("raylet", "gcs_server") and process.pid not in lost
    }
    killed = kill_node(nodes, node.node_id)
    lost_s = until(lambda: node.node_id not in added())
    until(added)
    say(
        "lost",
        seconds=lost_s,
        killed=len(killed),
        others=len(others),
        others_live=others <= {process.pid for process in nodes.processes()},
    )
    # One that ends before the autoscaler has seen it is replaced only after 30 s.
    until(lambda: not pending_nodes())
    (second,) = added()
    unknown = drain_node("ab" * 28, "not there", 30)
    drained = drain_node(second, "to see it go", 30)
    say(
        "drained",
        accepted=drained,
        unknown_accepted=unknown,
        seconds=until(lambda: second not in added()),
    )
    until(added)
    request_slots(0, 1.0, requester="test")
    say("left", seconds=until(lambda: not added()))
    request_slots(9, 1.0, requester="test")
    until(requests_are_impossible)
    request_slots(0, 1.0, requester="test")
    until(lambda: not requests_are_impossible())
    say("possible")


def main(path, how):
    with AutoscalingNodes(load_local_nodes(path)) as nodes:
        pids = [process.pid for process in nodes.processes()]
        say("up", folder=str(nodes.folder), pids=pids)
        if how == "wait":
            time.sleep(600)
        with ray_cluster(nodes.address, num_cpus=1):
            breathe(nodes)
        say("end", pids=[process.pid for process in nodes.processes()])


if __name__ == "__main__":
    main(*sys.argv[1:])
