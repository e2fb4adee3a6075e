"""Policies of others: loaded by name, and never trusted with the rules.

What a plug-in answers is checked against the same limits as the built-in policy. One
that raises, answers nonsense or breaks a rule becomes a ``Hold``; the run goes on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.errors import ScalingError
from pft_ray.scaling.decision import Decision, Grow, Hold, Shrink
from pft_ray.scaling.impact import assess
from pft_ray.scaling.outlook import Outlook
from pft_ray.scaling.placement import (
    Added,
    Prices,
    nodes_leaving,
    nodes_outside,
    usable_kinds,
    usable_nodes,
)
from pft_ray.scaling.snapshot import ClusterSnapshot

if TYPE_CHECKING:
    from pft_ray.scaling.snapshot import Node

Policy = Callable[[ClusterSnapshot], Decision]

_MOST_LETTERS = 300


def guarded(policy: Policy) -> Policy:
    """Returns a policy that holds whenever ``policy`` fails or breaks a rule.

    The reason names the type of an exception and never its text, which may quote
    anything. The impact of a change is assessed here, whatever the policy says of it.

    Guarantee:
        What is returned keeps to the limits, the floor, the regions and the slots of
        the snapshot, and it never raises an ``Exception``.
    """

    def checked(snapshot: ClusterSnapshot) -> Decision:
        try:
            decision = policy(snapshot)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            name = type(error).__name__
            return Hold(f"The policy raised {name}.", code="policy-failed")
        try:
            return _checked(snapshot, decision)
        except _BrokenRule as rule:
            return Hold(f"The policy's answer {rule}.", code="policy-rejected")
        except Exception as error:  # noqa: BLE001 - its answer may be anything
            name = type(error).__name__
            return Hold(
                f"The policy's answer cannot be read ({name}).", code="policy-rejected"
            )

    return checked


def load_policy(name: str) -> Policy:
    """Returns the policy that ``package.module:function`` names, guarded.

    Raises:
        ScalingError: The name has another form, the module cannot be imported, or
            there is no such function in it.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name.isidentifier()):
        raise ScalingError(
            f"The policy is named {name!r}.", "Name it as package.module:function."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - a module may raise anything
        raise ScalingError(
            f"The policy's module {module_name} cannot be imported "
            f"({type(error).__name__}).",
            "Check that it is installed beside pft_ray and imports on its own.",
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ScalingError(
            f"{module_name} has no function {function_name}.",
            "Name a function that takes a ClusterSnapshot and returns a decision.",
        )
    return guarded(function)


class _BrokenRule(Exception):  # noqa: N818 - it never leaves this module
    """What the answer of a policy does that it must not."""


def _checked(snapshot: ClusterSnapshot, decision: object) -> Decision:
    if isinstance(decision, Hold):
        return Hold(_text(decision.reason), None, _text(decision.code))
    if isinstance(decision, Grow):
        return _checked_grow(snapshot, decision)
    if isinstance(decision, Shrink):
        return _checked_shrink(snapshot, decision)
    raise _BrokenRule("is no decision")


def _checked_grow(snapshot: ClusterSnapshot, grow: Grow) -> Grow:
    _check_size(snapshot, grow.num_workers)
    bad = _must_leave(snapshot)
    replaces = bool(bad and grow.add)
    _refuse_if(
        grow.num_workers <= snapshot.num_workers and not replaces,
        "grows to no more workers than there are",
    )
    _refuse_if(
        not grow.add and bool(set(bad) - set(grow.leave)),
        "keeps workers where they must not stay",
    )
    nodes, add = _nodes_without(snapshot, grow.leave), _added(snapshot, grow.add)
    slots = sum(count * kind.num_slots for kind, count in add)
    kept = _needed(nodes, grow.num_workers, slots)
    outlook = Outlook(snapshot)
    choice = outlook.choice(grow.num_workers, kept, add)
    _refuse_if(not outlook.affordable(choice)[0], "costs more an hour than is allowed")
    _refuse_if(
        not (replaces or outlook.pays_off(choice)[0]),
        "grows too late to be worth the start",
    )
    impact = assess(snapshot, grow.num_workers, kept, add, outlook=outlook)
    reason, code = _text(grow.reason), _text(grow.code)
    return replace(grow, impact=impact, reason=reason, code=code)


def _checked_shrink(snapshot: ClusterSnapshot, shrink: Shrink) -> Shrink:
    _check_size(snapshot, shrink.num_workers)
    now = snapshot.num_workers
    _refuse_if(shrink.num_workers > now, "shrinks to more workers than there are")
    _refuse_if(shrink.num_workers == now and not shrink.leave, "changes nothing")
    _refuse_if(
        bool(set(_must_leave(snapshot)) - set(shrink.leave)),
        "keeps workers where they must not stay",
    )
    kept = _needed(_nodes_without(snapshot, shrink.leave), shrink.num_workers, 0)
    impact = assess(snapshot, shrink.num_workers, kept)
    reason, code = _text(shrink.reason), _text(shrink.code)
    return replace(shrink, impact=impact, reason=reason, code=code)


def _refuse_if(broken: bool, problem: str) -> None:  # noqa: FBT001 - reads as a sentence
    if broken:
        raise _BrokenRule(problem)


def _check_size(snapshot: ClusterSnapshot, num_workers: int) -> None:
    limits = snapshot.limits
    _refuse_if(not snapshot.num_steps_left, "changes a run that has no step left")
    _refuse_if(type(num_workers) is not int, "names no number of workers")
    _refuse_if(num_workers < limits.floor, f"goes below {limits.floor} workers")
    most = min(limits.max_workers, limits.num_shares)
    _refuse_if(num_workers > most, f"goes above {most} workers")


def _must_leave(snapshot: ClusterSnapshot) -> tuple[str, ...]:
    bad = (*nodes_outside(snapshot), *nodes_leaving(snapshot))
    return tuple(node.node_id for node in bad)


def _nodes_without(
    snapshot: ClusterSnapshot, leave: tuple[str, ...]
) -> tuple[Node, ...]:
    held = {node.node_id for node in snapshot.nodes if node.num_workers}
    _refuse_if(bool(set(leave) - held), "leaves a node that holds no worker")
    usable = usable_nodes(snapshot, Prices.of(snapshot))
    return tuple(node for node in usable if node.node_id not in leave)


def _added(snapshot: ClusterSnapshot, add: tuple[tuple[str, int], ...]) -> Added:
    kinds = {kind.name: kind for kind in usable_kinds(snapshot, Prices.of(snapshot))}
    counts = dict(add)
    _refuse_if(len(counts) < len(add), "names a kind of nodes twice")
    _refuse_if(bool(set(counts) - set(kinds)), "adds nodes that may not be added")
    for name, count in add:
        _refuse_if(type(count) is not int or count < 1, "adds no number of nodes")
        _refuse_if(count > kinds[name].num_available, "adds more nodes than there are")
    return tuple((kinds[name], count) for name, count in add)


def _needed(
    nodes: tuple[Node, ...], num_workers: int, num_new_slots: int
) -> tuple[Node, ...]:
    """Returns the first of ``nodes`` that hold the workers, or all beside new ones."""
    ends = np.cumsum([node.num_slots for node in nodes])
    num_slots = num_new_slots + (int(ends[-1]) if len(ends) else 0)
    _refuse_if(num_workers > num_slots, "wants more workers than there are slots")
    return nodes[: int(np.searchsorted(ends, num_workers)) + 1]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _BrokenRule("gives a reason or a code that is no text")
    return " ".join(value.split())[:_MOST_LETTERS]
