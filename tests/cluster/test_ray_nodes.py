"""Whose a node is, from what Ray counts as used on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pft_ray.cluster import ray_nodes
from pft_ray.cluster.capacity import NodeFacts
from pft_ray.cluster.ray_nodes import RayNodes
from tests.cluster.resizing import settings_of

TOTAL = {
    "CPU": 4.0,
    "GPU": 1.0,
    "memory": 8e9,
    "object_store_memory": 1e9,
    "node:10.0.0.2": 1.0,
    "CPU_group_0_abc": 2.0,
    "bundle_group_abc": 1000.0,
}


def view(monkeypatch, *, used, num_workers=2, own_node="head", is_head=False):
    """What a run with two workers of one CPU sees of a node with four."""
    free = {name: amount - used.get(name, 0.0) for name, amount in TOTAL.items()}
    state = SimpleNamespace(
        available_resources_per_node=lambda: {"n": free},
        total_resources_per_node=lambda: {"n": TOTAL},
    )
    facts = NodeFacts("n", "spot", 4.0, 8, {}, is_head, False, None)
    context = SimpleNamespace(get_node_id=lambda: own_node)
    monkeypatch.setattr(ray_nodes.ray._private, "state", state)
    monkeypatch.setattr(ray_nodes.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray_nodes.ray, "nodes", list)
    monkeypatch.setattr(ray_nodes, "live_nodes", lambda: [facts])
    (found,) = RayNodes(settings_of()).views({"n": num_workers} if num_workers else {})
    return found


OURS = {"CPU": 2.0, "CPU_group_0_abc": 1.0, "bundle_group_abc": 0.002}


def test_a_node_with_nothing_but_our_workers_is_ours(monkeypatch):
    found = view(monkeypatch, used=OURS | {"object_store_memory": 5e8})
    assert (found.is_ours, found.num_slots) == (True, 4)


@pytest.mark.parametrize(
    "other", [{"CPU": 3.0}, {"GPU": 1.0}, {"memory": 1e9}, {"node:10.0.0.2": 0.001}]
)
def test_a_node_that_others_use_is_not(monkeypatch, other):
    found = view(monkeypatch, used=OURS | other)
    assert not found.is_ours
    assert found.num_slots == (3 if "CPU" in other else 4)


@pytest.mark.parametrize("more", [{"own_node": "n"}, {"is_head": True}])
def test_the_node_of_controller_and_coordinator_is_not(monkeypatch, more):
    assert not view(monkeypatch, used=OURS, **more).is_ours


def test_a_node_without_our_workers_is_not(monkeypatch):
    found = view(monkeypatch, used={}, num_workers=0)
    assert (found.is_ours, found.num_slots) == (False, 4)


def test_room_is_what_is_free_once_our_group_has_ended(monkeypatch):
    assert view(monkeypatch, used={"CPU": 2.0}, num_workers=0).num_slots == 2
