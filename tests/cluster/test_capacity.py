"""What Ray's reports come to as facts, and requests that never reach Ray."""

from __future__ import annotations

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus

from pft_ray.cluster import capacity
from pft_ray.cluster.capacity import (
    NodeFacts,
    PendingNodes,
    drain_node,
    live_nodes,
    pending_nodes,
    request_slots,
    requests_are_impossible,
)
from pft_ray.errors import InputError

_REGION, _MARKET = "ray.io/availability-region", "ray.io/market-type"


@pytest.fixture
def reply(monkeypatch):
    """The status that Ray's control store is made to give."""
    status = GetClusterStatusReply()
    monkeypatch.setattr(capacity, "_status", lambda: status)
    monkeypatch.setattr(
        ray._private.state.state, "get_draining_nodes", lambda: {"02" * 28: 12_500}
    )
    return status


def add_node(reply, number, status, resources, labels=None, **fields):
    node = reply.cluster_resource_state.node_states.add(
        node_id=bytes([number]) * 28, status=status, **fields
    )
    node.total_resources.update(resources)
    node.labels.update(labels or {})


def test_live_nodes_are_given_with_the_head_first_and_without_the_dead(reply):
    spot = {_REGION: "eu", _MARKET: "spot"}
    one_cpu = {"CPU": 1.0, "memory": 2e9}
    add_node(reply, 1, NodeStatus.DEAD, one_cpu)
    add_node(reply, 2, NodeStatus.DRAINING, one_cpu, spot, ray_node_type_name="eu-spot")
    add_node(reply, 3, NodeStatus.IDLE, one_cpu, idle_duration_ms=2500)
    add_node(reply, 4, NodeStatus.RUNNING, {"node:__internal_head__": 1.0})
    head, draining, idle = live_nodes()
    assert (head.is_head, head.num_cpus, head.region) == (True, 0.0, None)
    assert draining == NodeFacts(
        node_id="02" * 28,
        node_type="eu-spot",
        num_cpus=1.0,
        memory_bytes=2_000_000_000,
        labels=spot,
        is_head=False,
        is_draining=True,
        drain_deadline_s=12.5,
    )
    assert (draining.region, draining.market) == ("eu", "spot")
    assert (idle.is_draining, idle.drain_deadline_s) == (False, None)


def test_launches_are_counted_by_type_whatever_their_stage(reply):
    state = reply.autoscaling_state
    state.pending_instance_requests.add(ray_node_type_name="spot", count=2)
    state.pending_instance_requests.add(ray_node_type_name="demand", count=1)
    state.pending_instances.add(ray_node_type_name="spot")
    assert pending_nodes() == [PendingNodes("demand", 1), PendingNodes("spot", 3)]


def test_whether_requests_can_be_met(reply):
    assert not requests_are_impossible()
    reply.autoscaling_state.infeasible_cluster_resource_constraints.add()
    assert requests_are_impossible()


def test_a_node_that_is_not_alive_is_not_drained(reply, monkeypatch):
    monkeypatch.setattr(capacity, "_gcs_client", lambda: pytest.fail("Ray was asked"))
    add_node(reply, 1, NodeStatus.DEAD, {"CPU": 1.0})
    assert not drain_node("01" * 28, "gone", 5)
    assert not drain_node("", "none", 5)


@pytest.mark.parametrize(
    ("count", "cpus", "selector", "found"),
    [
        (-1, 1.0, None, "-1 workers"),
        (1, 0.0, None, "0 CPUs"),
        (1, -1.0, None, "-1 CPUs"),
        (1, 1.0, {_REGION: "in("}, "label selector"),
        (1, 1.0, {"a b": "c"}, "label selector"),
    ],
)
def test_wrong_requests_are_refused(monkeypatch, count, cpus, selector, found):
    monkeypatch.setattr(capacity, "_coordinating_actor", lambda: pytest.fail("asked"))
    with pytest.raises(InputError, match=r"asked for|does not take") as caught:
        request_slots(count, cpus, selector, requester="test")
    assert found in caught.value.message
