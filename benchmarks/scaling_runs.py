"""One simulated run on a trace, event-driven: time, steps, checkpoints, losses, money.

Who decides, and what a resize does, is said by ``scaling_contestants.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from traces import HOUR_S, NOTICE_S, REPAIR_S, Loss, Trace

if TYPE_CHECKING:
    from pft_ray.scaling import Limits, PhaseWork

POLL_S = 30.0
RESIZE_S, RESTART_S = 30.0, 20.0


@dataclass(frozen=True)
class Job:
    """What is trained: phases, grants, checkpoints, reserve."""

    phases: tuple[PhaseWork, ...]
    grant_size: int
    checkpoint_interval: int
    fault_reserve: int

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)

    @property
    def num_steps_max(self) -> int:
        return self.num_steps + self.fault_reserve


@dataclass
class Outcome:
    """What a run came to."""

    finished: bool = False
    time_s: float = 0.0
    node_hours: float = 0.0
    money: float = 0.0
    executed: int = 0
    charged: int = 0
    again_planned: int = 0
    again_lost: int = 0
    most_uncharged: int = 0
    resizes: int = 0
    losses: int = 0
    codes: dict[str, int] = field(default_factory=dict)


class Run(ABC):
    """The cluster and the step loop; subclasses decide.

    Args:
        trace: The trace.
        job: The job.
        limits: Of the elastic policy; the others use the maximum only.
    """

    poll_s = POLL_S
    has_ledger = True

    def __init__(self, trace: Trace, job: Job, limits: Limits) -> None:
        self.trace, self.job, self.limits = trace, job, limits
        self.outcome = Outcome()
        self.now = 0.0
        self.done = self.saved = self.grant_left = 0
        self.step_left: float | None = None
        self.num_workers = 0
        self.held: dict[int, float] = {}  # place -> since when it is ready
        self.busy: set[int] = set()  # places that hold workers
        self.starting: list[float] = []  # when each node is ready
        self.broken: dict[int, float] = {}
        self.leaving: dict[int, float] = {}
        self.paused_until = 0.0
        self.last_resize: float | None = None
        self.plan: tuple[int, tuple[int, ...]] | None = None
        self._losses = list(reversed(trace.losses))
        self._next_poll = 0.0

    def run(self, patience_s: float) -> Outcome:
        """Runs until all steps are made, the budget ends or patience does."""
        while self.done < self.job.num_steps and self.now < patience_s:
            self._advance(self._next_event())
            if self.done >= self.job.num_steps or self._exhausted():
                break
            self._happen()
        self.outcome.finished = self.done >= self.job.num_steps
        self.outcome.time_s = self.now
        return self.outcome

    # what subclasses say

    @abstractmethod
    def poll(self) -> None:
        """Decides something."""

    @abstractmethod
    def regroup(self) -> None:
        """Goes on after a loss."""

    # time

    def _next_event(self) -> float:
        times = [self._next_poll, *self.starting, *self.leaving.values()]
        if self._losses:
            times.append(self._losses[-1].time_s)
        return max(self.now, min(times))

    def _advance(self, until: float) -> None:
        """Makes steps until then, or until something must be decided before."""
        while self.now < until:
            if self.now < self.paused_until:
                self._pay(min(until, self.paused_until))
                continue
            if self.plan is not None and not self.grant_left and self.step_left is None:
                self._resize()
                continue
            if not self.num_workers or not self._begin_step():
                self._pay(until)
                return
            assert self.step_left is not None
            stop = min(until, self.now + self.step_left)
            self.step_left -= stop - self.now
            self._pay(stop)
            if self.step_left <= 1e-9:
                self._end_step()
                if self.done >= self.job.num_steps or self._next_poll <= self.now:
                    return  # the next phase begins: decide first

    def _begin_step(self) -> bool:
        """Starts the next step; False when the ledger gives no more."""
        if self.step_left is not None:
            return True
        phase, in_phase = self._phase()
        if self.has_ledger and not self.grant_left:
            left = self.job.num_steps_max - self.outcome.charged
            grant = min(self.job.grant_size, phase.num_steps - in_phase, left)
            if grant <= 0:
                return False
            self.outcome.charged += grant
            self.grant_left = grant
        self.step_left = phase.step_time.seconds(self.num_workers)
        return True

    def _end_step(self) -> None:
        self.step_left = None
        self.done += 1
        self.outcome.executed += 1
        uncharged = self.outcome.executed - self.outcome.charged
        self.outcome.most_uncharged = max(self.outcome.most_uncharged, uncharged)
        self.grant_left = max(0, self.grant_left - 1)
        phase, in_phase = self._phase()
        if self.done % self.job.checkpoint_interval == 0 or not in_phase:
            self.saved = self.done
        if not in_phase and phase:
            self._next_poll = self.now

    def _phase(self) -> tuple[PhaseWork, int]:
        before = 0
        for phase in self.job.phases:
            if self.done < before + phase.num_steps:
                return phase, self.done - before
            before += phase.num_steps
        return self.job.phases[-1], 0

    def _exhausted(self) -> bool:
        spent = self.outcome.charged >= self.job.num_steps_max
        return self.has_ledger and spent and not self.grant_left

    def _pay(self, until: float) -> None:
        while self.now < until:
            stop = min(until, (math.floor(self.now / HOUR_S) + 1) * HOUR_S)
            node_hours = (len(self.held) + len(self.starting)) * (stop - self.now)
            node_hours /= HOUR_S
            self.outcome.node_hours += node_hours
            self.outcome.money += node_hours * (self.trace.price_at(self.now) or 0.0)
            self.now = stop

    # events

    def _happen(self) -> None:
        for place in [p for p, end in self.broken.items() if end <= self.now]:
            del self.broken[place]
        self._arrive()
        while self._losses and self._losses[-1].time_s <= self.now:
            self._hit(self._losses.pop())
        for place in [p for p, end in self.leaving.items() if end <= self.now]:
            del self.leaving[place]
            self._lose(place)
        if self._next_poll <= self.now:
            self._next_poll = self.now + self.poll_s
            self.poll()

    def _arrive(self) -> None:
        ready = [time for time in self.starting if time <= self.now]
        self.starting = [time for time in self.starting if time > self.now]
        for _ in ready:
            free = (p for p in range(self.trace.pool) if self._is_free(p))
            place = next(free, None)
            if place is not None:
                self.held[place] = self.now
        if ready:
            self._next_poll = self.now

    def _is_free(self, place: int) -> bool:
        return place not in self.held and place not in self.broken

    def _hit(self, loss: Loss) -> None:
        if loss.place not in self.held:
            return
        if loss.announced:
            self.leaving.setdefault(loss.place, self.now + NOTICE_S)
            self._next_poll = self.now
        else:
            self.leaving.pop(loss.place, None)
            self._lose(loss.place)

    def _lose(self, place: int) -> None:
        if place not in self.held:
            return
        del self.held[place]
        self.broken[place] = self.now + REPAIR_S
        self._next_poll = self.now
        if place not in self.busy:
            return
        self.busy.discard(place)
        self.outcome.losses += 1
        self.outcome.again_lost += self._drop()
        self.num_workers = 0
        self.busy = set()
        self.plan = None
        self.paused_until = self.now + RESTART_S
        self.regroup()

    def _drop(self) -> int:
        """Goes back to the last checkpoint; returns the steps to make again."""
        again = self.done - self.saved
        self.done = self.saved
        self.grant_left, self.step_left = 0, None
        return again

    # changes

    def ask(self, count: int) -> None:
        """Asks for nodes, as many as other tenants leave."""
        count = min(count, self.num_available)
        self.starting += [self.now + self.trace.kind.start_s] * count

    def give_back(self, places: tuple[int, ...]) -> None:
        """Returns nodes at once."""
        for place in places:
            self.held.pop(place, None)
            self.busy.discard(place)
            self.leaving.pop(place, None)

    def place(self, num_workers: int, among: list[int]) -> None:
        """Puts workers on the first of these nodes."""
        needed = -(-num_workers // self.trace.num_slots)
        assert needed <= len(among)
        self.busy = set(among[:needed])
        self.num_workers = num_workers

    @property
    def num_available(self) -> int:
        """Nodes that the cluster can add."""
        mine = len(self.held) + len(self.starting)
        unbroken = self.trace.pool - len(self.broken)
        return max(0, min(self.trace.free_at(self.now), unbroken) - mine)

    def _resize(self) -> None:
        """Carries out the plan at the end of a grant: no step is lost."""
        assert self.plan is not None
        num_workers, leave = self.plan
        self.plan = None
        stay = [p for p in sorted(self.held) if p not in leave]
        stay.sort(key=lambda place: (place in self.leaving, place not in self.busy))
        if num_workers > len(stay) * self.trace.num_slots:
            return  # a node was lost while the grant ended; decide again
        self.saved = self.done  # the resize waits until this checkpoint is registered
        self.outcome.again_planned += self._drop()
        self.place(num_workers, stay)
        self.give_back(tuple(leave))
        self.paused_until = self.now + RESIZE_S
        self.last_resize = self.paused_until
        self.outcome.resizes += 1
        self._next_poll = self.paused_until
