"""Who goes next: the admission orders of the waiting queue, as pure functions.

Nothing here stores, waits or reads a clock; all numbers are exact fractions of a
block's whole budget. A block's budget may have several parts (epsilon and delta); a
demand on it has the same parts and fits only when each of them does.

``fcfs``
    First come, first served. A job may be admitted when all its demands fit what
    nobody holds and no earlier waiting job demands one of the same blocks. A job that
    shares no block with an earlier one may pass it.

``dpf``
    Dominant private block fairness with parameter N (Luo et al. 2021, "Privacy Budget
    Scheduling", OSDI, section 4). Every job that arrives unlocks 1/N of the whole
    budget of each block that it demands, until all of it is unlocked. A job's share
    of a block is the largest part of its demand there; its dominant share is the
    largest of these over its blocks. Among waiting jobs whose demands fit what is
    unlocked and nobody holds, the one with the smallest dominant share goes first.
    Ties are broken by the next largest share, and so on (a job that has no further
    share goes first), then by arrival. Jobs that share no block do not wait for one
    another: their admissions take nothing from each other and may come in any order.

Under both orders a job that can never fit any more, because a block's budget was used
meanwhile, holds nobody up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from pft_ray.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FCFS = "fcfs"
DPF = "dpf"
ORDERS = (FCFS, DPF)

Parts = tuple[Fraction, ...]


@dataclass(frozen=True)
class Order:
    """An admission order.

    Attributes:
        kind: ``fcfs`` or ``dpf``.
        dpf_n: Arrivals that unlock a block's whole budget; 0 under ``fcfs``.
    """

    kind: str = FCFS
    dpf_n: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ORDERS:
            raise InputError(
                f"The admission order is {self.kind!r}.",
                f"Orders are {' and '.join(ORDERS)}.",
            )
        if (self.kind == DPF) != (self.dpf_n > 0):
            raise InputError(
                f"The admission order {self.kind} with N {self.dpf_n}.",
                "Give dpf an N of at least 1, and fcfs none.",
            )


@dataclass(frozen=True)
class Job:
    """What a run demands.

    Attributes:
        name: The run.
        demand: Block to the parts of its whole budget that the run asks for.
    """

    name: str
    demand: Mapping[str, Parts]

    @cached_property
    def shares(self) -> Parts:
        """Its share of each block, the dominant one first."""
        return tuple(sorted(map(max, self.demand.values()), reverse=True))

    def meets(self, other: Job) -> bool:
        """Whether both demand a part of one block."""
        return not self.demand.keys().isdisjoint(other.demand)


class Supply(NamedTuple):
    """What there is of a block, in parts of its whole budget.

    Attributes:
        left: What no run holds.
        unused: What no charge has used; the most that can ever be left.
        num_arrivals: Jobs that ever asked for a part of it.
        whole: What there is in all, when that is only a purpose of the block; empty
            for the whole block.
    """

    left: Parts
    unused: Parts
    num_arrivals: int
    whole: Parts = ()

    def free(self, order: Order) -> Parts:
        """Returns what may be taken now: unlocked and not held."""
        if order.kind == FCFS or self.num_arrivals >= order.dpf_n:
            return self.left
        locked = Fraction(order.dpf_n - self.num_arrivals, order.dpf_n)
        wholes = self.whole or (Fraction(1),) * len(self.left)
        return tuple(
            part - locked * whole for part, whole in zip(self.left, wholes, strict=True)
        )


class Missing(NamedTuple):
    """A demand that does not fit: block, the place of the part, how much lacks."""

    block: str
    part: int
    lacks: Fraction


def missing(order: Order, job: Job, supplies: Mapping[str, Supply]) -> Missing | None:
    """Returns the largest lack among the job's demands; None when all fit now."""
    lacks = [
        Missing(block, part, asked - free)
        for block, parts in job.demand.items()
        for part, (asked, free) in enumerate(
            zip(parts, supplies[block].free(order), strict=True)
        )
        if asked > free
    ]
    return max(lacks, key=lambda found: found.lacks, default=None)


def is_possible(job: Job, supplies: Mapping[str, Supply]) -> bool:
    """Whether the job may fit some day: no block was used up beyond its demand."""
    return all(
        asked <= unused
        for block, parts in job.demand.items()
        for asked, unused in zip(parts, supplies[block].unused, strict=True)
    )


def ahead(
    order: Order,
    job: Job,
    waiting: Iterable[Job],
    supplies: Mapping[str, Supply],
) -> list[Job]:
    """Returns the waiting jobs that have to be admitted before ``job`` now.

    Args:
        order: The admission order.
        job: One of the waiting jobs, or one that just arrived and stands last.
        waiting: All waiting jobs, in order of arrival.
        supplies: Every block that one of them demands.
    """
    free = _Free(order, supplies)
    found, came_before = [], True
    for other in waiting:
        if other is job:
            came_before = False
        elif not other.meets(job):
            continue
        elif order.kind == FCFS:
            if came_before and is_possible(other, supplies):
                found.append(other)
        elif free.holds(other) and (
            other.shares < job.shares or (came_before and other.shares == job.shares)
        ):
            found.append(other)
    return found


def next_job(
    order: Order, waiting: Sequence[Job], supplies: Mapping[str, Supply]
) -> Job | None:
    """Returns the job to admit now, or None when nobody can be.

    Args:
        order: The admission order.
        waiting: All waiting jobs, in order of arrival.
        supplies: Every block that one of them demands.
    """
    free = _Free(order, supplies)
    if order.kind == DPF:
        fitting = (job for job in waiting if free.holds(job))
        # min keeps the first of equals: the earliest.
        return min(fitting, key=lambda job: job.shares, default=None)
    claimed: set[str] = set()
    for job in waiting:
        if not claimed.isdisjoint(job.demand):
            claimed.update(job.demand if is_possible(job, supplies) else ())
        elif free.holds(job):
            return job
        elif is_possible(job, supplies):
            claimed.update(job.demand)
    return None


class _Free:
    """What may be taken of each block now, worked out once a block."""

    def __init__(self, order: Order, supplies: Mapping[str, Supply]) -> None:
        self._order = order
        self._supplies = supplies
        self._known: dict[str, Parts] = {}

    def _of(self, block: str) -> Parts:
        if block not in self._known:
            self._known[block] = self._supplies[block].free(self._order)
        return self._known[block]

    def holds(self, job: Job) -> bool:
        """Whether every demand of the job fits."""
        return all(
            asked <= free
            for block, parts in job.demand.items()
            for asked, free in zip(parts, self._of(block), strict=True)
        )
