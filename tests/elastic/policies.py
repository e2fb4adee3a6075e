"""Policies as a user might plug them in."""

from __future__ import annotations

from pft_ray.scaling import Hold, Shrink, decide

NEAR_THE_END = 10


def breathing(snapshot):
    """The built-in policy, but a run near its end gives a node back."""
    nodes = [node.node_id for node in snapshot.nodes if node.num_workers]
    stays = all(node.leaves_in_s is None for node in snapshot.nodes)
    if snapshot.num_steps_left > NEAR_THE_END or not stays:
        return decide(snapshot)
    if len(nodes) > 1:
        return Shrink(1, (nodes[-1],), "The end is near.", None, "near-the-end")
    return Hold("The end is near.")


def raising(snapshot):
    raise ValueError("a text that may quote anything")
