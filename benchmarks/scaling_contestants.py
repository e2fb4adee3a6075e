"""Who decides in a simulated run: the package's policy, a fixed size, a blind trainer.

Only the blind one asks no ledger.
"""

from __future__ import annotations

from scaling_runs import RESIZE_S, RESTART_S, Run

from pft_ray.scaling import (
    ClusterSnapshot,
    Decision,
    Grow,
    Node,
    NodeType,
    PhaseWork,
    Shrink,
    decide,
)

BLIND_POLL_S = 60.0
IDLE_S = 120.0  # a node that was asked for and is not used goes back after this


class Elastic(Run):
    """The policy of the package."""

    def snapshot(self) -> ClusterSnapshot:
        """Returns what the policy may see."""
        price = self.trace.price_at(self.now)
        slots, left = self.trace.num_slots, self.num_workers
        nodes = []
        order = sorted(self.held, key=lambda p: (p not in self.busy, p))
        for place in order:
            count = min(slots, left) if place in self.busy else 0
            left -= count
            until = self.leaving.get(place)
            nodes.append(
                Node(
                    f"place-{place}",
                    slots,
                    count,
                    price_per_hour=price,
                    leaves_in_s=None if until is None else until - self.now,
                )
            )
        kind = NodeType(
            "node",
            slots,
            self.num_available,
            price_per_hour=price,
            start_s=self.trace.kind.start_s,
        )
        return ClusterSnapshot(
            self.now,
            self.num_workers,
            self._work(),
            self.job.num_steps_max - self.outcome.charged + self.grant_left,
            tuple(nodes),
            (kind,),
            self.limits,
            len(self.starting) * slots,
            self.last_resize,
        )

    def poll(self) -> None:
        if self.now < self.paused_until or self.plan is not None:
            self._next_poll = max(self.paused_until, self.now + 5.0)
            return
        self.act(decide(self.snapshot()))

    def regroup(self) -> None:
        self.act(decide(self.snapshot()))

    def act(self, decision: Decision) -> None:
        """Does what was decided."""
        codes = self.outcome.codes
        codes[decision.code] = codes.get(decision.code, 0) + 1
        if isinstance(decision, Grow) and decision.add:
            self.ask(sum(count for _, count in decision.add))
        elif isinstance(decision, Grow | Shrink):
            leave = tuple(int(name.split("-")[1]) for name in decision.leave)
            if self.num_workers:
                self.plan = (decision.num_workers, leave)
            else:
                among = [p for p in sorted(self.held) if p not in self.leaving]
                self.place(decision.num_workers, among)
                self.paused_until = max(self.paused_until, self.now + RESTART_S)
        else:
            self._release_idle()

    def _release_idle(self) -> None:
        if not self.num_workers:
            return
        idle = [
            place
            for place, since in self.held.items()
            if place not in self.busy and self.now - since >= IDLE_S
        ]
        self.give_back(tuple(idle))

    def _work(self) -> tuple[PhaseWork, ...]:
        done, left = self.done, []
        for phase in self.job.phases:
            made = min(done, phase.num_steps)
            done -= made
            left.append(PhaseWork(phase.num_steps - made, phase.step_time))
        return tuple(left)


class Static(Run):
    """A group of fixed size, the largest, from its start to its end.

    It waits until all its nodes are free at once, holds them from then on, and pays
    for them from then on. A lost node is replaced by a free one as fast as one starts;
    the run waits for it with all others, since its size is fixed. An announced loss
    is met with a checkpoint.
    """

    @property
    def size(self) -> int:
        """Workers, all the time."""
        return self.limits.max_workers

    def poll(self) -> None:
        if self.leaving:
            self.saved = self.done
        needed = -(-self.size // self.trace.num_slots)
        missing = needed - len(self.held) - len(self.starting)
        if missing > 0 and (self.held or self.num_available >= needed):
            self.ask(missing)
        if not self.num_workers and len(self.held) >= needed:
            self.place(self.size, sorted(self.held))
            self.paused_until = max(self.paused_until, self.now + RESTART_S)

    def regroup(self) -> None:
        self.poll()


class Reserved(Static):
    """The same on nodes that were kept free for it before the run was submitted."""

    @property
    def num_available(self) -> int:
        return self.trace.pool - len(self.held) - len(self.broken)


class Blind(Run):
    """A plain elastic trainer: grows whenever a node is free, whatever is left to pay.

    A resize stops the workers at once and goes on from the last checkpoint, as for a
    failure. It keeps no ledger: steps that are made again are not counted.
    """

    poll_s = BLIND_POLL_S
    has_ledger = False

    def poll(self) -> None:
        most = self.limits.max_workers
        needed = -(-most // self.trace.num_slots)
        missing = needed - len(self.held) - len(self.starting)
        if missing > 0:
            self.ask(missing)
        size = min(most, len(self.held) * self.trace.num_slots)
        if self.now < self.paused_until or size <= self.num_workers:
            return
        if self.num_workers:
            self.outcome.again_planned += self._drop()
            self.outcome.resizes += 1
        self.place(size, sorted(self.held))
        self.paused_until = self.now + RESIZE_S

    def regroup(self) -> None:
        size = min(self.limits.max_workers, len(self.held) * self.trace.num_slots)
        if size >= self.limits.floor:
            self.place(size, sorted(self.held))
