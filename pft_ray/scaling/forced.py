"""Changes that the run does not choose: nodes that go, regions, limits, standing still.

Rest and savings do not hold them up. None leads below the floor: a run that cannot
move keeps its last registered checkpoint and waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pft_ray.scaling.decision import Decision, Grow, Hold, Shrink, workers
from pft_ray.scaling.impact import Impact, assess
from pft_ray.scaling.outlook import Outlook
from pft_ray.scaling.pareto import cheapest
from pft_ray.scaling.placement import left_nodes, nodes_leaving, nodes_outside

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.scaling.snapshot import ClusterSnapshot

_WORDS = {
    "outside-region": "workers lie outside the allowed regions",
    "spot-notice": "a node of the run will be taken away",
    "above-maximum": "the run has more workers than its limits allow",
    "price-limit": "the nodes of the run cost more an hour than is allowed",
}
_BLOCKED = {
    "outside-region": "region-blocked",
    "spot-notice": "spot-below-minimum",
    "above-maximum": "maximum-blocked",
}


def forced_code(snapshot: ClusterSnapshot) -> str | None:
    """Returns why the run must change now, or None when it may choose."""
    if nodes_outside(snapshot):
        return "outside-region"
    if nodes_leaving(snapshot):
        return "spot-notice"
    if snapshot.num_workers > snapshot.limits.max_workers:
        return "above-maximum"
    return None


def move(snapshot: ClusterSnapshot, code: str) -> Decision:
    """Returns how the run gets away: to other nodes, or to fewer of them."""
    outlook = Outlook(snapshot)
    sizes = outlook.sizes_there()
    sizes = sizes[sizes <= snapshot.num_workers]
    if len(sizes):
        return _shrink(outlook, pick_size(outlook, sizes), code)
    return _replace(outlook, code)


def restore(snapshot: ClusterSnapshot) -> Decision:
    """Returns how a run that stands still gets the workers it needs.

    Nodes that are there are taken at once; new ones are asked for when they are not
    enough. Standing still makes no step, so no start is too dear for the budget.
    """
    limits, outlook = snapshot.limits, Outlook(snapshot)
    if limits.max_price_per_hour is not None and not outlook.prices.whole:
        return Hold("The price is limited and not known.", code="price-missing")
    for sizes in (outlook.sizes_there(), outlook.sizes):
        possible = sizes[outlook.affordable(outlook.moves(sizes))]
        if len(possible):
            size = pick_size(outlook, possible)
            return _grow(outlook, size, "below-minimum", "The run stands still")
    if len(outlook.sizes):
        return Hold(
            f"{workers(limits.floor)} would cost more an hour than is allowed.",
            code="price-limit",
        )
    if snapshot.num_pending_slots:
        return Hold("Nodes were asked for and are starting.", code="pending")
    return Hold(
        f"The run needs {workers(limits.floor)} and there is no room for them.",
        code="below-minimum",
    )


def cheapen(outlook: Outlook) -> Decision:
    """Returns how a run that costs too much an hour gets below its limit."""
    snapshot, sizes = outlook.snapshot, outlook.sizes_there()
    sizes = sizes[sizes <= snapshot.num_workers]
    if len(sizes):
        size = pick_size(outlook, sizes)
        hourly = float(outlook.moves(np.array([size])).hourly[0])
        # The sums are taken in another order: equal ones may differ in the last bit.
        if hourly < outlook.hourly_now * (1 - 1e-9):
            return _shrink(outlook, size, "price-limit")
    return Hold(
        f"The {workers(snapshot.limits.floor)} needed cost more than is allowed.",
        code="price-limit",
    )


def pick_size(outlook: Outlook, sizes: NDArray[np.int64]) -> int:
    """Returns the size that suits best, of those given; at least one is.

    How fast it has to run is judged by all sizes that the run could have, not only by
    these. Sizes beyond the limit of the price are taken only when there are no
    others, and then the smallest.
    """
    affordable = outlook.affordable(outlook.moves(sizes))
    if not affordable.any():
        return int(sizes[0])
    sizes = sizes[affordable]
    every = outlook.moves(outlook.sizes)
    running_s = outlook.weigh(every).running_s[outlook.affordable(every)]
    weighed = outlook.weigh(outlook.moves(sizes))
    acceptable = weighed.running_s <= outlook.bound_s(running_s)
    acceptable &= weighed.time_s <= outlook.time_limit_s
    return int(sizes[cheapest(weighed.time_s, weighed.cost, acceptable) or 0])


def impact_of(outlook: Outlook, num_workers: int) -> Impact:
    """Returns the assessment of a resize to the first places of the supply."""
    nodes, add = outlook.supply.placement(num_workers)
    return assess(outlook.snapshot, num_workers, nodes, add, outlook=outlook)


def _shrink(outlook: Outlook, size: int, code: str) -> Shrink:
    snapshot = outlook.snapshot
    nodes, _ = outlook.supply.placement(size)
    now = snapshot.num_workers
    change = "Workers move" if size == now else f"{workers(size)} instead of {now}"
    return Shrink(
        size,
        left_nodes(snapshot, nodes),
        f"{change}: {_WORDS[code]}.",
        impact_of(outlook, size),
        code,
    )


def _grow(outlook: Outlook, size: int, code: str, reason: str) -> Grow:
    nodes, add = outlook.supply.placement(size)
    action = "new nodes are asked for" if add else f"{workers(size)} fit now"
    return Grow(
        size,
        tuple((kind.name, count) for kind, count in add),
        f"{reason}; {action}.",
        impact_of(outlook, size),
        code,
        left_nodes(outlook.snapshot, nodes),
    )


def _replace(outlook: Outlook, code: str) -> Decision:
    """Returns how the run asks for nodes before it leaves those that it has."""
    snapshot = outlook.snapshot
    floor = snapshot.limits.floor
    if snapshot.num_pending_slots:
        return Hold(
            f"{_sentence(code)}; nodes to replace it are starting.",
            code="replacement-pending",
        )
    sizes = outlook.sizes[outlook.sizes <= snapshot.num_workers]
    if not len(sizes):
        return Hold(
            f"{_sentence(code)} and it needs {workers(floor)}: the run will wait at "
            "its last checkpoint until there is room.",
            code=_BLOCKED[code],
        )
    size = int(sizes[-1])
    reason = _sentence(code)
    if code == "spot-notice":
        start_s = float(outlook.moves(sizes[-1:]).start_s[0])
        leaves_in_s = min(node.leaves_in_s or 0.0 for node in nodes_leaving(snapshot))
        if start_s + snapshot.limits.resize_s > leaves_in_s:
            reason += " before others can be there: the run will wait at its checkpoint"
    return _grow(outlook, size, "replace", reason)


def _sentence(code: str) -> str:
    words = _WORDS[code]
    return words[0].upper() + words[1:]
