"""The scaling policy: a pure function from a snapshot to a decision.

Rules, in this order:

1. No step left: hold.
2. Fewer workers than the floor (the run stands still): as many as suit the run on the
   nodes that are there, else ask for nodes.
3. Workers on nodes that were announced to leave, or outside the allowed regions, or
   more workers or a higher price than the limits allow: move or shrink at once, never
   below the floor.
4. Else the choice: of all sizes that the slots allow, the cheapest that runs within
   (1 + max_slowdown) of the fastest and meets the deadline; the fastest when none
   does. See :class:`~pft_ray.scaling.outlook.Outlook` for what time and cost hold.
5. A larger size must be worth its start before the budget ends
   (:meth:`~pft_ray.scaling.outlook.Outlook.pays_off`).
6. Rest: ``min_interval_s`` after a resize, and none that saves less than
   ``min_saving`` of the time or of the cost.
7. Nodes for the next phase are asked for while the last steps of this one are made.
8. Near exhaustion, when what is left takes less than a rest and a pause, the run
   never grows, and shrinks without rest whenever that costs less at all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.scaling import forced
from pft_ray.scaling.decision import Decision, Grow, Hold, Shrink, workers
from pft_ray.scaling.guard import Policy, guarded, load_policy
from pft_ray.scaling.outlook import Outlook
from pft_ray.scaling.pareto import cheapest
from pft_ray.scaling.placement import left_nodes, time_left_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.scaling.impact import Impact
    from pft_ray.scaling.snapshot import ClusterSnapshot

_STAY = 0  # index of the present size among the choices
_VERTICAL = "`pft profile` finds a faster setting of each worker."

__all__ = ["Policy", "decide", "guarded", "load_policy", "near_exhaustion"]


def near_exhaustion(snapshot: ClusterSnapshot) -> bool:
    """Says whether the steps left take less than one rest and one pause.

    A resize now would be the last: there is no time left to take it back.
    """
    limits = snapshot.limits
    return time_left_s(snapshot) <= limits.min_interval_s + limits.resize_s


def decide(snapshot: ClusterSnapshot) -> Decision:
    """Returns what to do now, with the reason and the impact.

    Guarantee:
        No decision leads below the floor of the limits, above their maximum or the
        number of noise shares, onto a node outside the allowed regions, or to more
        workers than there are slots.
    """
    if not snapshot.num_steps_left:
        return Hold("No paid step is left to make.", code="finished")
    if snapshot.num_workers < snapshot.limits.floor:
        return forced.restore(snapshot)
    code = forced.forced_code(snapshot)
    if code is not None:
        return forced.move(snapshot, code)
    outlook = Outlook(snapshot)
    obstacle = _obstacle(outlook)
    if obstacle is not None:
        return obstacle
    if not outlook.affordable(outlook.stay())[0]:
        return forced.cheapen(outlook)
    return _Choice(outlook).decision()


def _obstacle(outlook: Outlook) -> Hold | None:
    """Returns a hold when no free choice can be made."""
    limits, prices = outlook.snapshot.limits, outlook.prices
    if limits.floor == limits.max_workers:
        return Hold(
            f"The run may have {workers(limits.floor)}, no more and no fewer. "
            f"{_VERTICAL}",
            code="horizontal-closed",
        )
    if prices.known and not prices.whole:
        return Hold("A node of the run has no price.", code="price-missing")
    if limits.max_price_per_hour is not None and not prices.known:
        return Hold("The price is limited and no node has one.", code="price-missing")
    return None


class _Choice:
    """The present size, first, and all others, weighed; picks one and says why."""

    def __init__(self, outlook: Outlook) -> None:
        self._outlook = outlook
        self._snapshot = outlook.snapshot
        self._moves = outlook.moves(outlook.sizes)
        moving, staying = outlook.weigh(self._moves), outlook.weigh(outlook.stay())
        self._running = np.append(staying.running_s, moving.running_s)
        self._times = np.append(staying.time_s, moving.time_s)
        self._costs = np.append(staying.cost, moving.cost)
        self._sizes = np.append(self._snapshot.num_workers, self._moves.sizes)
        self._near_end = near_exhaustion(self._snapshot)

    def decision(self) -> Decision:
        """Returns the decision for a run that may choose freely."""
        possible = self._possible()
        picked = self._pick(possible, possible & self._worth_their_start())
        if picked == _STAY:
            return self._ahead() or self._hold(self._pick(possible))
        saved = self._saved(picked)
        held = self._rest(picked, saved)
        if held is not None:
            return self._ahead() or held
        if self._sizes[picked] > self._snapshot.num_workers:
            return self._grow(picked)
        return self._shrink(picked, saved)

    @property
    def _late(self) -> bool:
        """Whether the present size misses the deadline."""
        return bool(self._times[_STAY] > self._outlook.time_limit_s)

    def _possible(self) -> NDArray[np.bool_]:
        """Says which resizes the price allows and which change anything.

        Only a larger size brings new nodes, and the same one must leave a node.
        """
        supply, sizes = self._outlook.supply, self._moves.sizes
        now = self._snapshot.num_workers
        possible = supply.last_place(sizes) < supply.num_there
        if possible[sizes == now].any():
            nodes, _ = supply.placement(now)
            possible[sizes == now] = bool(left_nodes(self._snapshot, nodes))
        return self._outlook.affordable(self._moves) & (possible | (sizes > now))

    def _worth_their_start(self) -> NDArray[np.bool_]:
        smaller = self._moves.sizes <= self._snapshot.num_workers
        if self._near_end:
            return smaller
        return smaller | self._outlook.pays_off(self._moves)

    def _pick(
        self, possible: NDArray[np.bool_], allowed: NDArray[np.bool_] | None = None
    ) -> int:
        """Returns the cheapest acceptable of the allowed sizes, the present one too.

        Acceptable is what runs within the bound and meets the deadline. The bound
        comes from all possible sizes, and a resize away from an acceptable size must
        keep to it with its pause, so that the next decision does not take it back.
        """
        may = np.append(True, possible if allowed is None else allowed)
        bound_s = self._outlook.bound_s(self._running[np.append(True, possible)])
        acceptable = (self._running <= bound_s) & (
            self._times <= self._outlook.time_limit_s
        )
        if acceptable[_STAY]:
            # Near the end a pause is most of the time left; it is not held against
            # a smaller size there.
            pause_s = self._snapshot.limits.resize_s if self._near_end else 0.0
            acceptable[1:] &= self._times[1:] <= bound_s + pause_s
        times = np.where(may, self._times, math.inf)
        return cheapest(times, self._costs, acceptable & may) or _STAY

    def _saved(self, picked: int) -> float:
        """Returns the part of time or cost left that is saved, the larger one."""
        gains = [0.0]
        for values in (self._times, self._costs):
            now = values[_STAY]
            gains.append(float(1 - values[picked] / now) if now else 0.0)
        return max(gains)

    def _rest(self, picked: int, saved: float) -> Hold | None:
        """Returns a hold when it is too early for a resize, or not worth it."""
        limits = self._snapshot.limits
        last = self._snapshot.last_resize_s
        if self._near_end:
            return None
        if last is not None and self._snapshot.now_s - last < limits.min_interval_s:
            return Hold(
                f"The last resize is less than {limits.min_interval_s:g} s ago.",
                self._impact(picked),
                "resized-lately",
            )
        in_time = self._times[picked] <= self._outlook.time_limit_s
        if saved < limits.min_saving and not (self._late and in_time):
            return Hold(
                f"{workers(int(self._sizes[picked]))} would save {saved:.1%}; a resize "
                f"must save {limits.min_saving:.0%}.",
                self._impact(picked),
                "small-saving",
            )
        return None

    def _ahead(self) -> Grow | None:
        """Returns a request for the nodes of the next phase when it is time for it.

        They start while the last steps of this phase are made; the resize comes with
        the first decision of the next one.
        """
        size = self._outlook.rest.first_size
        if self._near_end or size is None or size <= self._snapshot.num_workers:
            return None
        moves = self._outlook.moves(np.array([size], dtype=np.int64))
        start_s, now = float(moves.start_s[0]), self._snapshot.num_workers
        ready_s = start_s + self._snapshot.limits.resize_s
        nodes, add = self._outlook.supply.placement(size)
        worth = self._outlook.affordable(moves) & self._outlook.pays_off(moves)
        if not add or self._running[_STAY] > ready_s or not worth[0]:
            return None
        return Grow(
            size,
            tuple((kind.name, count) for kind, count in add),
            f"{workers(size)} instead of {now} suit the next phase; nodes start now.",
            forced.impact_of(self._outlook, size),
            "next-phase",
            left_nodes(self._snapshot, nodes),
        )

    def _hold(self, wanted: int) -> Hold:
        now, limits = self._snapshot.num_workers, self._snapshot.limits
        if self._near_end:
            return Hold(
                "The paid steps end too soon for another size.", code="near-exhaustion"
            )
        if self._sizes[wanted] > now:
            return Hold(
                f"The {self._snapshot.num_steps_left} paid steps left end before "
                f"{self._sizes[wanted]} workers are worth their start.",
                self._impact(wanted),
                "too-late-to-grow",
            )
        if now < limits.max_workers and self._outlook.supply.num_slots <= now:
            if self._snapshot.num_pending_slots:
                return Hold("Nodes were asked for and are starting.", code="pending")
            return Hold(
                f"No slot is free and no node can be added. {_VERTICAL}",
                code="horizontal-closed",
            )
        return Hold(f"{workers(now)} suit the steps that are left.")

    def _grow(self, picked: int) -> Grow:
        size = int(self._sizes[picked])
        saved = 1 - self._times[picked] / self._times[_STAY]
        nodes, add = self._outlook.supply.placement(size)
        gain = "meets the deadline" if self._late else f"saves {saved:.0%} of the time"
        return Grow(
            size,
            tuple((kind.name, count) for kind, count in add),
            f"{workers(size)} instead of {self._snapshot.num_workers}: {gain}.",
            self._impact(picked),
            "deadline" if self._late else "faster",
            left_nodes(self._snapshot, nodes),
        )

    def _shrink(self, picked: int, saved: float) -> Shrink:
        size, now = int(self._sizes[picked]), self._snapshot.num_workers
        nodes, _ = self._outlook.supply.placement(size)
        what, code = f"{workers(size)} instead of {now}", "cheaper"
        if self._near_end:
            code = "near-exhaustion"
        elif size == now:
            what, code = f"{workers(now)} on fewer or cheaper nodes", "consolidate"
        return Shrink(
            size,
            left_nodes(self._snapshot, nodes),
            f"{what}: saves {saved:.0%} of the time or cost left.",
            self._impact(picked),
            code,
        )

    def _impact(self, picked: int) -> Impact:
        return forced.impact_of(self._outlook, int(self._sizes[picked]))
