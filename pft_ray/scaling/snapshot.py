"""What a scaling decision may know: sizes, prices, notices, steps that are paid for.

All of it is public or for the operator: no loss, no gradient, no time of a real step.
How long a real step takes depends on how many records its secret batch holds, so a
decision made from it would be a function of private data that nobody accounts for.
:class:`StepTime` therefore comes from a probe on synthetic records.

Times are seconds. ``now_s``, ``last_resize_s`` and ``deadline_s`` are readings of one
clock; every other time is a duration.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pft_ray.errors import ScalingError
from pft_ray.scaling.checks import (
    check_amount,
    check_name,
    check_optional_amount,
    check_whole,
)


def _store(target: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(target, name, value)


@dataclass(frozen=True)
class StepTime:
    """How the time of a step depends on the number of workers, from a probe.

    Attributes:
        serial_s: What every worker does whole, however many there are.
        parallel_s: What is shared out: the work of one worker that is alone.
        exchange_s: What each further worker adds to the reduction.
    """

    serial_s: float
    parallel_s: float
    exchange_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("serial_s", "parallel_s", "exchange_s"):
            _store(self, **{name: check_amount(getattr(self, name), name)})
        if self.serial_s + self.parallel_s == 0:
            raise ScalingError(
                "A step takes no time at all.", "Give what the probe measured."
            )

    def seconds(self, num_workers: int) -> float:
        """Returns serial + parallel / n + exchange (n - 1), in seconds."""
        check_whole(num_workers, "num_workers", 1)
        shared = self.parallel_s / num_workers
        return self.serial_s + shared + self.exchange_s * (num_workers - 1)


@dataclass(frozen=True)
class PhaseWork:
    """Planned steps that a phase still has to make, and how long one takes."""

    num_steps: int
    step_time: StepTime

    def __post_init__(self) -> None:
        check_whole(self.num_steps, "num_steps")


@dataclass(frozen=True)
class Node:
    """A node that is there.

    Attributes:
        node_id: The cluster's name for it.
        num_slots: Workers of this run that it can hold by processors and memory:
            those that it holds and those that would fit beside them.
        num_workers: Workers of this run that it holds.
        region: Where it stands; empty when nobody said.
        price_per_hour: Of the whole node; None when unknown.
        is_spot: Whether it may be taken away.
        leaves_in_s: Seconds until it is taken away, when that was announced.
    """

    node_id: str
    num_slots: int
    num_workers: int = 0
    region: str = ""
    price_per_hour: float | None = None
    is_spot: bool = False
    leaves_in_s: float | None = None

    def __post_init__(self) -> None:
        check_name(self.node_id, "node_id")
        check_whole(self.num_slots, "num_slots")
        check_whole(self.num_workers, "num_workers")
        check_optional_amount(self.price_per_hour, "price_per_hour")
        check_optional_amount(self.leaves_in_s, "leaves_in_s")
        if self.num_workers > self.num_slots:
            raise ScalingError(
                f"Node {self.node_id} holds {self.num_workers} workers in "
                f"{self.num_slots} slots.",
                "Count the slots that this run already uses, too.",
            )


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the cluster may add.

    Attributes:
        name: The cluster's name for the kind.
        num_slots: Workers of this run that one such node can hold.
        num_available: How many of them can still be added.
        region: Where they would stand; empty when nobody said.
        price_per_hour: Of one node; None when unknown.
        is_spot: Whether they may be taken away.
        start_s: From asking for one until workers can start on it.
    """

    name: str
    num_slots: int
    num_available: int
    region: str = ""
    price_per_hour: float | None = None
    is_spot: bool = False
    start_s: float = 30.0

    def __post_init__(self) -> None:
        check_name(self.name, "node type")
        check_whole(self.num_slots, "num_slots")
        check_whole(self.num_available, "num_available")
        check_optional_amount(self.price_per_hour, "price_per_hour")
        check_amount(self.start_s, "start_s")


@dataclass(frozen=True)
class Limits:
    """What no decision may break, and how eager decisions are.

    Attributes:
        min_workers: Fewest workers.
        max_workers: Most workers; at most ``num_shares``.
        needed_workers: Fewest that keep the noise floor or hold all owners.
        num_shares: V, the plan's noise shares; every rank must hold one.
        allowed_regions: Where shards may lie; None for anywhere. A node whose region
            is not known is not allowed once regions are named.
        deadline_s: When the run should be done, by the clock of ``now_s``.
        max_price_per_hour: Most that all nodes of the run may cost an hour.
        max_slowdown: Part by which a cheaper size may be slower than the fastest.
        resize_s: How long a planned resize stops the run.
        min_interval_s: Rest between two resizes that are not forced.
        min_saving: Part of time or money that a resize must save to be worth it.
    """

    min_workers: int
    max_workers: int
    needed_workers: int = 1
    num_shares: int = 1
    allowed_regions: frozenset[str] | None = None
    deadline_s: float | None = None
    max_price_per_hour: float | None = None
    max_slowdown: float = 0.1
    resize_s: float = 30.0
    min_interval_s: float = 60.0
    min_saving: float = 0.05

    def __post_init__(self) -> None:
        for name in ("min_workers", "max_workers", "needed_workers", "num_shares"):
            check_whole(getattr(self, name), name, 1)
        for name in ("max_slowdown", "resize_s", "min_interval_s", "min_saving"):
            check_amount(getattr(self, name), name)
        for name in ("deadline_s", "max_price_per_hour"):
            check_optional_amount(getattr(self, name), name)
        self._check_regions()
        self._check_order()

    @property
    def floor(self) -> int:
        """The fewest workers that a step may be made with."""
        return max(self.min_workers, self.needed_workers)

    def allows(self, region: str) -> bool:
        """Says whether a shard may lie in ``region``."""
        if self.allowed_regions is None:
            return True
        return region in self.allowed_regions

    def _check_regions(self) -> None:
        given: Any = self.allowed_regions
        if given is None:
            return
        if isinstance(given, str):
            raise ScalingError(
                f"allowed_regions is the word {given!r}.", "Give a list of regions."
            )
        regions = frozenset(given)
        if not regions or not all(isinstance(r, str) and r.strip() for r in regions):
            raise ScalingError(
                "allowed_regions is empty or names no region.",
                "Name at least one region, or leave it out to allow all.",
            )
        _store(self, allowed_regions=regions)

    def _check_order(self) -> None:
        if self.min_workers > self.max_workers:
            raise ScalingError(
                f"min_workers is {self.min_workers}, max_workers {self.max_workers}.",
                "Give a minimum that is not above the maximum.",
            )
        if self.needed_workers > self.max_workers:
            raise ScalingError(
                f"The run needs {self.needed_workers} workers and may have "
                f"{self.max_workers}.",
                f"Raise max_workers to {self.needed_workers}.",
            )
        if self.max_workers > self.num_shares:
            raise ScalingError(
                f"max_workers is {self.max_workers} with {self.num_shares} noise "
                "shares: a worker without a share would send its sum bare.",
                f"Plan {self.max_workers} shares, or lower max_workers to "
                f"{self.num_shares}.",
            )


@dataclass(frozen=True)
class ClusterSnapshot:
    """One reading of everything that a decision is made from.

    Attributes:
        now_s: When it was taken.
        num_workers: Workers that make steps now; 0 when the run stands still.
        work: Phases with steps to make, the present one first.
        num_paid_steps_left: Steps that the plan's allowance still covers.
        nodes: Nodes that are there.
        node_types: Kinds of nodes that may be added.
        limits: What no decision may break.
        num_pending_slots: Slots of nodes that were asked for and are not there yet.
        last_resize_s: When the last resize ended; None before the first.
    """

    now_s: float
    num_workers: int
    work: tuple[PhaseWork, ...]
    num_paid_steps_left: int
    nodes: tuple[Node, ...]
    node_types: tuple[NodeType, ...]
    limits: Limits
    num_pending_slots: int = 0
    last_resize_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("work", "nodes", "node_types"):
            _store(self, **{name: tuple(getattr(self, name))})
        check_amount(self.now_s, "now_s")
        check_optional_amount(self.last_resize_s, "last_resize_s")
        for name in ("num_workers", "num_paid_steps_left", "num_pending_slots"):
            check_whole(getattr(self, name), name)
        _check_distinct([node.node_id for node in self.nodes], "node")
        _check_distinct([kind.name for kind in self.node_types], "node type")
        held = sum(node.num_workers for node in self.nodes)
        if held > self.num_workers:
            raise ScalingError(
                f"The nodes hold {held} workers and the run has {self.num_workers}.",
                "Count the workers and the nodes in one reading.",
            )

    @property
    def num_steps_left(self) -> int:
        """Steps that can still be made: planned ones, as far as they are paid for."""
        return min(sum(w.num_steps for w in self.work), self.num_paid_steps_left)

    def phases_left(self) -> tuple[PhaseWork, ...]:
        """Returns the phases that can still be run, cut where the payment ends."""
        left = self.num_paid_steps_left
        phases = []
        for part in self.work:
            num_steps = min(part.num_steps, left)
            left -= num_steps
            if num_steps:
                phases.append(PhaseWork(num_steps, part.step_time))
        return tuple(phases)


def _check_distinct(names: list[str], what: str) -> None:
    if len(set(names)) == len(names):
        return
    twice = next(name for name, count in Counter(names).items() if count > 1)
    raise ScalingError(
        f"The {what} {twice!r} is listed twice.", f"Give each {what} a name of its own."
    )
