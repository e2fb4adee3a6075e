"""What a change of size does to noise, time, money and regions, before it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.mechanisms.shares import assign_shares
from pft_ray.scaling.outlook import Choices, Outlook, Weighed

if TYPE_CHECKING:
    from pft_ray.scaling.placement import Added
    from pft_ray.scaling.snapshot import ClusterSnapshot, Node


@dataclass(frozen=True)
class ShareSplit:
    """How the plan's noise shares lie on the ranks.

    Attributes:
        least: Shares of the rank that holds fewest.
        most: Shares of the rank that holds most.
        numerator: Shares of all ranks together; the whole noise is ``denominator``.
        denominator: V, the plan's shares.
    """

    least: int
    most: int
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Impact:
    """An assessment of one change, for the steps that are still paid for.

    Times and costs run until the last of these steps, each with its pauses and the
    start of nodes; phases after the present one are taken at the size that suits them.
    None stands for what cannot be told: a run that stands still, a missing price.

    Attributes:
        num_workers_before: Workers now.
        num_workers_after: Workers after it.
        shares_before: Noise shares on the ranks now; None when there is no rank.
        shares_after: Noise shares on the ranks after it.
        floor_kept: Whether each rank has a share and all needed workers are there.
        num_steps: Steps that are assessed.
        time_before_s: Time without the change.
        time_after_s: Time with it.
        money_before: Money without it.
        money_after: Money with it.
        node_hours_before: Node-hours without it.
        node_hours_after: Node-hours with it.
        pause_s: How long the resize stops the run.
        start_s: Until new nodes are there; the run goes on meanwhile.
        regions_before: Regions that hold shards now.
        regions_after: Regions that hold shards after it.
        num_steps_executed_twice: 0 for a planned resize: it waits for the end of a
            step and for the registered checkpoint of that step.

    Guarantee:
        The sampling rate, the noise multiplier and the number of paid steps are the
        plan's and appear here only as constants: whatever the size, the shares of all
        ranks sum to ``numerator`` / ``denominator`` = 1 of the plan's variance, so
        epsilon does not change.
    """

    num_workers_before: int
    num_workers_after: int
    shares_before: ShareSplit | None
    shares_after: ShareSplit | None
    floor_kept: bool
    num_steps: int
    time_before_s: float | None
    time_after_s: float | None
    money_before: float | None
    money_after: float | None
    node_hours_before: float | None
    node_hours_after: float | None
    pause_s: float
    start_s: float
    regions_before: tuple[str, ...]
    regions_after: tuple[str, ...]
    num_steps_executed_twice: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the assessment as JSON."""
        told = asdict(self)
        for name in ("regions_before", "regions_after"):
            told[name] = list(told[name])
        return told


def split_of(num_shares: int, num_workers: int) -> ShareSplit | None:
    """Returns how V shares lie on the ranks; None without a rank."""
    if num_workers < 1:
        return None
    most = len(assign_shares(num_shares, num_workers, 0))
    least = len(assign_shares(num_shares, num_workers, num_workers - 1))
    # Share i lies on rank i modulo the ranks, so the first V mod n hold one more.
    numerator = num_workers * least + num_shares % num_workers
    return ShareSplit(least, most, numerator, num_shares)


def assess(
    snapshot: ClusterSnapshot,
    num_workers: int,
    nodes: tuple[Node, ...],
    add: Added = (),
    *,
    outlook: Outlook | None = None,
) -> Impact:
    """Returns what it means to run with ``num_workers`` on ``nodes`` and new ones.

    Args:
        snapshot: The cluster now.
        num_workers: Workers after the change.
        nodes: Nodes of the snapshot that would hold them.
        add: (kind, count) of nodes that would be added for them.
        outlook: The outlook on this snapshot, when there is one already.
    """
    limits = snapshot.limits
    held = [node for node in snapshot.nodes if node.num_workers]
    start_s = max((kind.start_s for kind, _ in add), default=0.0)
    before, after = None, None
    if snapshot.num_steps_left:
        outlook = outlook or Outlook(snapshot)
        if not outlook.stands_still:
            before = _total(outlook, outlook.stay())
        if num_workers:
            after = _total(outlook, outlook.choice(num_workers, nodes, add))
    priced = all(node.price_per_hour is not None for node in held)
    priced_after = all(place.price_per_hour is not None for place in nodes) and all(
        kind.price_per_hour is not None for kind, _ in add
    )
    places = [*(node.region for node in nodes), *(kind.region for kind, _ in add)]
    return Impact(
        num_workers_before=snapshot.num_workers,
        num_workers_after=num_workers,
        shares_before=split_of(limits.num_shares, snapshot.num_workers),
        shares_after=split_of(limits.num_shares, num_workers),
        floor_kept=limits.floor <= num_workers <= limits.num_shares,
        num_steps=snapshot.num_steps_left,
        time_before_s=before and before[0],
        time_after_s=after and after[0],
        money_before=before[1] if before and priced else None,
        money_after=after[1] if after and priced and priced_after else None,
        node_hours_before=before and before[2],
        node_hours_after=after and after[2],
        pause_s=limits.resize_s,
        start_s=start_s,
        regions_before=_regions([node.region for node in held]),
        regions_after=_regions(places),
    )


def _total(outlook: Outlook, choice: Choices) -> tuple[float, float, float] | None:
    weighed: Weighed = outlook.weigh(choice)
    rest = outlook.rest
    total = (
        float(weighed.time_s[0]) + rest.time_s,
        float(weighed.cost[0]) + rest.cost,
        float(weighed.node_hours[0]) + rest.node_hours,
    )
    return total if all(math.isfinite(value) for value in total) else None


def _regions(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
