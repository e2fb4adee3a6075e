"""What a policy may answer: grow, shrink or hold, each with its reason.

``code`` is stable and for programs, ``reason`` is one short sentence for an operator.

* ``Grow`` with an empty ``add``: the slots are there; resize to ``num_workers`` now.
  ``leave`` names nodes that need not hold workers any more, which saves their price.
* ``Grow`` with ``add``: ask the cluster for these nodes. The run goes on at its size;
  a later snapshot that shows their slots brings the resize.
* ``Shrink``: resize to ``num_workers`` now and keep no worker on the nodes of
  ``leave``. The number may be the present one: then workers only move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pft_ray.scaling.impact import Impact


@dataclass(frozen=True)
class Grow:
    """More workers, or nodes to replace others.

    Attributes:
        num_workers: Size that the slots will allow.
        add: (node type, count) to ask for; empty when the slots are there.
        reason: For the operator.
        impact: What it does to shares, time, money and regions.
        code: For programs.
        leave: Nodes that hold workers now and are not needed after it.
    """

    num_workers: int
    add: tuple[tuple[str, int], ...]
    reason: str
    impact: Impact | None
    code: str = "faster"
    leave: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the decision as JSON."""
        return {
            "action": "grow",
            "num_workers": self.num_workers,
            "add": [{"node_type": name, "count": count} for name, count in self.add],
            "leave": list(self.leave),
        } | _told(self)


@dataclass(frozen=True)
class Shrink:
    """Fewer workers, or as many on fewer or other nodes.

    Attributes:
        num_workers: Size after it.
        leave: Nodes that hold workers now and must hold none after it.
        reason: For the operator.
        impact: What it does to shares, time, money and regions.
        code: For programs.
    """

    num_workers: int
    leave: tuple[str, ...]
    reason: str
    impact: Impact | None
    code: str = "cheaper"

    def to_dict(self) -> dict[str, Any]:
        """Returns the decision as JSON."""
        return {
            "action": "shrink",
            "num_workers": self.num_workers,
            "leave": list(self.leave),
        } | _told(self)


@dataclass(frozen=True)
class Hold:
    """No change.

    Attributes:
        reason: For the operator.
        impact: Of the change that was weighed and not made, if there was one.
        code: For programs.
    """

    reason: str
    impact: Impact | None = None
    code: str = "steady"

    def to_dict(self) -> dict[str, Any]:
        """Returns the decision as JSON."""
        return {"action": "hold"} | _told(self)


Decision = Grow | Shrink | Hold


def workers(count: int) -> str:
    """Returns "1 worker" or "4 workers"."""
    return f"{count} worker" if count == 1 else f"{count} workers"


def _told(decision: Decision) -> dict[str, Any]:
    impact = decision.impact
    return {
        "code": decision.code,
        "reason": decision.reason,
        "impact": None if impact is None else impact.to_dict(),
    }
