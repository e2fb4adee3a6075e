"""What each size means for the steps that are still paid for: time, cost, pay-off.

The phase under way is weighed at every size. Later phases are taken at the size that
the same rule picks for each of them alone: a head phase that hardly scales must not
be run at the size that suits the adapter phase after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.scaling.pareto import cheapest
from pft_ray.scaling.placement import Prices, Supply, supply_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.scaling.placement import Added
    from pft_ray.scaling.snapshot import ClusterSnapshot, Node, PhaseWork, StepTime

HOUR_S = 3600.0


@dataclass(frozen=True)
class Choices:
    """Sizes to choose from, with what holds them; arrays of one length.

    Attributes:
        sizes: Workers.
        hourly: Price of their nodes an hour.
        num_nodes: Nodes.
        start_s: Until the last of the nodes is there.
        pause_s: How long the resize stops the run.
    """

    sizes: NDArray[np.int64]
    hourly: NDArray[np.float64]
    num_nodes: NDArray[np.float64]
    start_s: NDArray[np.float64]
    pause_s: NDArray[np.float64]


@dataclass(frozen=True)
class Weighed:
    """What choices come to until all steps that are left are made.

    Attributes:
        running_s: Time of the steps of the phase under way alone. It does not depend
            on where the run is now, which keeps decisions from swinging.
        time_s: Time, with starts and pauses.
        cost: Money, or node-hours when prices do not help.
        node_hours: Node-hours.
    """

    running_s: NDArray[np.float64]
    time_s: NDArray[np.float64]
    cost: NDArray[np.float64]
    node_hours: NDArray[np.float64]


@dataclass(frozen=True)
class Rest:
    """Later phases, each at its own size.

    Attributes:
        first_size: Size of the next phase; None when there is none.
        time_s: Their time with the pauses between them.
        cost: Their cost.
        node_hours: Their node-hours.
    """

    first_size: int | None = None
    time_s: float = 0.0
    cost: float = 0.0
    node_hours: float = 0.0


def step_seconds(step_time: StepTime, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the time of a step at each size, as ``StepTime.seconds`` does."""
    seconds = step_time.serial_s + step_time.parallel_s / sizes
    return np.asarray(seconds + step_time.exchange_s * (sizes - 1), dtype=np.float64)


class Outlook:
    """Weighs sizes for one snapshot that has steps left to make.

    Args:
        snapshot: The snapshot.
    """

    def __init__(self, snapshot: ClusterSnapshot) -> None:
        self.snapshot = snapshot
        self.prices = Prices.of(snapshot)
        self.supply: Supply = supply_of(snapshot, self.prices)
        self.phases = snapshot.phases_left()
        held = [node for node in snapshot.nodes if node.num_workers]
        self.hourly_now = sum(self.prices.hourly(node) for node in held)
        self.num_nodes_now = len(held)
        self.stands_still = snapshot.num_workers < snapshot.limits.floor
        limits = snapshot.limits
        most = min(limits.max_workers, limits.num_shares, self.supply.num_slots)
        self.sizes = np.arange(limits.floor, most + 1, dtype=np.int64)
        self.rest = self._rest()

    def stay(self) -> Choices:
        """Returns the present size as the only choice, without a pause."""
        return Choices(
            np.array([self.snapshot.num_workers], dtype=np.int64),
            np.array([self.hourly_now], dtype=np.float64),
            np.array([self.num_nodes_now], dtype=np.float64),
            np.zeros(1),
            np.zeros(1),
        )

    def sizes_there(self) -> NDArray[np.int64]:
        """Returns the sizes that fit on nodes that are there."""
        there = self.supply.last_place(self.sizes) < self.supply.num_there
        return self.sizes[there]

    @property
    def time_limit_s(self) -> float:
        """Time that the phase under way may take, for the deadline's sake."""
        deadline_s = self.snapshot.limits.deadline_s
        if deadline_s is None:
            return math.inf
        return deadline_s - self.snapshot.now_s - self.rest.time_s

    def choice(
        self, num_workers: int, nodes: tuple[Node, ...], add: Added = ()
    ) -> Choices:
        """Returns a resize to ``num_workers`` on ``nodes`` and new ones as a choice."""
        hourly = sum(self.prices.hourly(node) for node in nodes)
        hourly += sum(count * self.prices.hourly(kind) for kind, count in add)
        num_nodes = len(nodes) + sum(count for _, count in add)
        start_s = max((kind.start_s for kind, _ in add), default=0.0)
        return Choices(
            np.array([num_workers], dtype=np.int64),
            np.array([hourly], dtype=np.float64),
            np.array([num_nodes], dtype=np.float64),
            np.array([start_s], dtype=np.float64),
            np.array([self.snapshot.limits.resize_s], dtype=np.float64),
        )

    def moves(self, sizes: NDArray[np.int64]) -> Choices:
        """Returns a resize to each of ``sizes``, with the nodes it would lie on."""
        last = self.supply.last_place(sizes)
        return Choices(
            sizes,
            self.supply.hourly_sums[last],
            (last + 1).astype(np.float64),
            self.supply.starts_s[last],
            np.full(len(sizes), self.snapshot.limits.resize_s),
        )

    def weigh(self, choices: Choices) -> Weighed:
        """Returns time and cost of each choice for the phase under way.

        While nodes start, the run goes on at its present size. A pause before the
        next phase is counted where that phase has another size.
        """
        phase = self.phases[0]
        made = np.minimum(phase.num_steps, self._steps_during(choices.start_s))
        seconds = step_seconds(phase.step_time, choices.sizes)
        working = choices.pause_s + (phase.num_steps - made) * seconds
        if self.rest.first_size is not None:
            changes = choices.sizes != self.rest.first_size
            working = working + changes * self.snapshot.limits.resize_s
        # Until they work, new nodes are paid for beside those that do.
        hourly = np.maximum(choices.hourly, self.hourly_now)
        nodes = np.maximum(choices.num_nodes, self.num_nodes_now)
        cost = choices.start_s * hourly + working * choices.hourly
        node_s = choices.start_s * nodes + working * choices.num_nodes
        return Weighed(
            phase.num_steps * seconds,
            choices.start_s + working,
            cost / HOUR_S,
            node_s / HOUR_S,
        )

    def pays_off(self, choices: Choices) -> NDArray[np.bool_]:
        """Says which larger sizes are worth their start before the budget ends.

        With s the start of the nodes, p the pause of the resize, t_n the time of a
        step at the present size n and t_m at the larger one, R the paid steps left
        and m = s / t_n those made while the nodes start::

            (R - m) (t_n - t_m) >= s + p

        The time that the nodes save must reach the time for which they are paid
        without working and others wait for them. Phases are summed; one that would
        be slower at m counts as zero, since the run shrinks for it.
        """
        if self.stands_still:
            return np.ones(len(choices.sizes), dtype=np.bool_)
        saved = np.zeros(len(choices.sizes))
        starting = choices.start_s.copy()
        for phase in self.phases:
            now = phase.step_time.seconds(self.snapshot.num_workers)
            made = np.minimum(phase.num_steps, starting / now)
            starting = np.maximum(0.0, starting - made * now)
            gain = now - step_seconds(phase.step_time, choices.sizes)
            saved += (phase.num_steps - made) * np.maximum(0.0, gain)
        return np.asarray(saved >= choices.start_s + choices.pause_s)

    def bound_s(self, running_s: NDArray[np.float64]) -> float:
        """Returns (1 + max_slowdown) times the fastest of these running times."""
        fastest = float(running_s.min()) if len(running_s) else math.inf
        return fastest * (1 + self.snapshot.limits.max_slowdown) * (1 + 1e-12)

    def affordable(self, choices: Choices) -> NDArray[np.bool_]:
        """Says which choices keep to the limit of the price an hour."""
        cap = self.snapshot.limits.max_price_per_hour
        if cap is None or not self.prices.whole:
            return np.ones(len(choices.sizes), dtype=np.bool_)
        return np.asarray(choices.hourly <= cap * (1 + 1e-9))

    def _steps_during(self, start_s: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.stands_still:
            return np.zeros(len(start_s))
        now = self.phases[0].step_time.seconds(self.snapshot.num_workers)
        return start_s / now

    def _rest(self) -> Rest:
        later = self.phases[1:]
        if not later or not len(self.sizes):
            return Rest()
        moves = self.moves(self.sizes)
        planned = [self._alone(phase, moves) for phase in later]
        time_s = cost = node_hours = 0.0
        before = int(moves.sizes[planned[0][0]])
        for index, seconds in planned:
            size = int(moves.sizes[index])
            seconds += self.snapshot.limits.resize_s * (size != before)
            before = size
            time_s += seconds
            cost += seconds * float(moves.hourly[index]) / HOUR_S
            node_hours += seconds * float(moves.num_nodes[index]) / HOUR_S
        first = int(moves.sizes[planned[0][0]])
        return Rest(first, time_s, cost, node_hours)

    def _alone(self, phase: PhaseWork, moves: Choices) -> tuple[int, float]:
        times = phase.num_steps * step_seconds(phase.step_time, moves.sizes)
        bound_s = self.bound_s(times[self.affordable(moves)])
        acceptable = self.affordable(moves) & (times <= bound_s)
        index = cheapest(times, times * moves.hourly, acceptable) or 0
        return index, float(times[index])
