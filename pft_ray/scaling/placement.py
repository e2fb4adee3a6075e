"""Where workers may lie: usable slots in the order in which they are filled.

Nodes that are there come before new ones, and cheaper slots before dearer ones; among
equals those that hold workers. A resize restarts every worker, so nodes are filled
whole and it does not matter where the workers were before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.scaling.snapshot import Node, NodeType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pft_ray.scaling.snapshot import ClusterSnapshot

Added = tuple[tuple[NodeType, int], ...]


@dataclass(frozen=True)
class Prices:
    """What a node costs an hour, or one node-hour an hour when prices do not help.

    Attributes:
        known: Whether any node or kind has a price.
        whole: Whether every node that holds workers has one, too. Only then costs are
            compared in money.
    """

    known: bool
    whole: bool

    @classmethod
    def of(cls, snapshot: ClusterSnapshot) -> Prices:
        """Returns which prices the snapshot has."""
        places: Iterable[Node | NodeType] = (*snapshot.nodes, *snapshot.node_types)
        known = any(place.price_per_hour is not None for place in places)
        held = (node for node in snapshot.nodes if node.num_workers)
        return cls(known, known and all(n.price_per_hour is not None for n in held))

    def hourly(self, place: Node | NodeType) -> float:
        """Returns the price of a usable place, or 1 when nodes are counted."""
        if not self.whole or place.price_per_hour is None:
            return 1.0
        return place.price_per_hour

    def can_grow_to(self, place: Node | NodeType) -> bool:
        """Says whether the place has a price, where others have."""
        return not self.known or place.price_per_hour is not None


@dataclass(frozen=True)
class Supply:
    """Usable nodes and new ones, in the order in which they are filled.

    Attributes:
        places: A node, or the kind of a new one, as often as it is there.
        ends: Slots up to and with each place; rises strictly.
        hourly_sums: Price an hour up to and with each place.
        starts_s: Longest start up to and with each place; 0 for nodes that are there.
        num_there: How many of the places are nodes that are there.
    """

    places: tuple[Node | NodeType, ...]
    ends: NDArray[np.int64]
    hourly_sums: NDArray[np.float64]
    starts_s: NDArray[np.float64]
    num_there: int

    @property
    def num_slots(self) -> int:
        """All slots together."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def last_place(self, sizes: NDArray[np.int64]) -> NDArray[np.intp]:
        """Returns the index of the last place that each size needs."""
        return np.searchsorted(self.ends, sizes)

    def placement(self, num_workers: int) -> tuple[tuple[Node, ...], Added]:
        """Returns the nodes and the new nodes that hold ``num_workers``."""
        last = int(np.searchsorted(self.ends, num_workers))
        used = self.places[: last + 1]
        nodes = tuple(place for place in used if isinstance(place, Node))
        kinds = (place for place in used if isinstance(place, NodeType))
        return nodes, tuple((kind, len(list(group))) for kind, group in groupby(kinds))


def usable_nodes(snapshot: ClusterSnapshot, prices: Prices) -> list[Node]:
    """Returns the nodes that may hold workers, in the order of filling.

    A node is out when it stands outside the allowed regions, when it leaves before
    the run could end at its present size, or when it is free and has no price
    although others have one.
    """
    limits = snapshot.limits
    ends_in_s = time_left_s(snapshot) + limits.resize_s
    usable = [
        node
        for node in snapshot.nodes
        if node.num_slots
        and limits.allows(node.region)
        and not _leaves_before(node, ends_in_s)
        and (node.num_workers or prices.can_grow_to(node))
    ]

    def rank(node: Node) -> tuple[float, bool, int, str]:
        hourly = prices.hourly(node) / node.num_slots
        return hourly, node.num_workers == 0, -node.num_slots, node.node_id

    return sorted(usable, key=rank)


def nodes_outside(snapshot: ClusterSnapshot) -> list[Node]:
    """Returns nodes that hold workers and stand outside the allowed regions."""
    limits = snapshot.limits
    return [n for n in snapshot.nodes if n.num_workers and not limits.allows(n.region)]


def nodes_leaving(snapshot: ClusterSnapshot) -> list[Node]:
    """Returns nodes that hold workers and leave before the run could end."""
    ends_in_s = time_left_s(snapshot) + snapshot.limits.resize_s
    return [n for n in snapshot.nodes if n.num_workers and _leaves_before(n, ends_in_s)]


def left_nodes(snapshot: ClusterSnapshot, kept: tuple[Node, ...]) -> tuple[str, ...]:
    """Returns the ids of nodes that hold workers and are not among ``kept``."""
    names = {node.node_id for node in kept}
    held = (node.node_id for node in snapshot.nodes if node.num_workers)
    return tuple(name for name in held if name not in names)


def usable_kinds(snapshot: ClusterSnapshot, prices: Prices) -> list[NodeType]:
    """Returns the kinds that may be added, in the order of asking.

    None while nodes that were asked for are still on their way.
    """
    if snapshot.num_pending_slots:
        return []
    usable = [
        kind
        for kind in snapshot.node_types
        if kind.num_slots
        and kind.num_available
        and snapshot.limits.allows(kind.region)
        and prices.can_grow_to(kind)
    ]

    def rank(kind: NodeType) -> tuple[float, float, str]:
        return prices.hourly(kind) / kind.num_slots, kind.start_s, kind.name

    return sorted(usable, key=rank)


def supply_of(snapshot: ClusterSnapshot, prices: Prices) -> Supply:
    """Returns the usable places: nodes that are there, then those that may be added."""
    places: list[Node | NodeType] = list(usable_nodes(snapshot, prices))
    num_there = len(places)
    wanted = snapshot.limits.max_workers - sum(place.num_slots for place in places)
    for kind in usable_kinds(snapshot, prices):
        num_new = min(kind.num_available, -(-max(0, wanted) // kind.num_slots))
        places.extend([kind] * num_new)
        wanted -= num_new * kind.num_slots
    starts = np.zeros(len(places))
    starts[num_there:] = [
        place.start_s for place in places[num_there:] if isinstance(place, NodeType)
    ]
    return Supply(
        tuple(places),
        np.cumsum([place.num_slots for place in places], dtype=np.int64),
        np.cumsum([prices.hourly(place) for place in places], dtype=np.float64),
        np.maximum.accumulate(starts),
        num_there,
    )


def time_left_s(snapshot: ClusterSnapshot) -> float:
    """Returns how long the steps that are left take at the present size.

    Infinite when the run stands still for want of workers.
    """
    num_workers = snapshot.num_workers
    if num_workers < snapshot.limits.floor:
        return float("inf")
    return sum(
        phase.num_steps * phase.step_time.seconds(num_workers)
        for phase in snapshot.phases_left()
    )


def _leaves_before(node: Node, ends_in_s: float) -> bool:
    return node.leaves_in_s is not None and node.leaves_in_s < ends_in_s
