"""The coordinator's side of planned resizes: when workers stop, and who goes on.

What is made here of an attempt is the coordinator's, which calls it under its lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.cluster.boundary import Boundary
from pft_ray.cluster.step_keys import check_roster
from pft_ray.errors import GrantRefusedError

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.cluster.attempts import Attempt
    from pft_ray.telemetry import EventFile


class Resizes:
    """The planned resizes of one run, and what the scaling side said of it.

    Args:
        plan: The run's plan; it says how many workers can carry its noise.
        park_timeout_s: How long workers wait at a boundary for their resize.
        events: Where resizes and decisions are told; None for nowhere.

    Attributes:
        boundary: Where the present resize stands.
        step_times: What made-up records cost in each phase, in seconds.
        decision: The newest scaling decision, for the display.
        is_node_leaving: Whether a node of the run is about to leave.
    """

    def __init__(
        self, plan: Plan, park_timeout_s: float, events: EventFile | None
    ) -> None:
        self.boundary = Boundary(park_timeout_s)
        self.step_times: list[dict[str, float]] = []
        self.decision: dict[str, Any] = {}
        self.is_node_leaving = False
        self._plan = plan
        self._events = events

    # -- rosters ----------------------------------------------------------------

    def pass_on(self, current: Attempt, tokens: list[bytes], start: int) -> bool:
        """Gives an attempt to the roster of an approved resize.

        Returns:
            False when the roster does not continue it: another attempt is opened.
        """
        approved = self.boundary.takes_over(start)
        if not (approved and current.can_pass(tokens, start)):
            return False
        before = len(current.tokens)
        current.pass_to(tokens, start)
        self.boundary.leave()
        self._note("resized", step=start, num_workers=[before, len(tokens)])
        return True

    def reopened(self, *, by_same_roster: bool) -> None:
        """Another attempt was opened; a wish outlives it only with its roster."""
        if by_same_roster:
            self.boundary.reopened()
        else:
            self.boundary.leave()

    # -- the boundary -----------------------------------------------------------

    def want(self, num_workers: int, *, is_stopping: bool) -> bool:
        """Asks for a boundary before the next grant, unless the run is stopping.

        Returns:
            Whether a roster of that size can carry the plan's noise.
        """
        try:
            check_roster(self._plan, num_workers)
        except GrantRefusedError:
            return False
        if not is_stopping:
            self.boundary.want(num_workers)
        return True

    def park(self, current: Attempt, step: int, *, is_stopping: bool) -> bool:
        """The workers have saved ``step`` and ask whether to wait on.

        Returns:
            False when they are to go on: the run is stopping, a later step was
            charged, or the resize was given up.
        """
        if is_stopping or step != current.charged:
            self.boundary.leave()
            return False
        was_met = self.boundary.stage == "met"
        waits = self.boundary.park(step)
        if waits and was_met:
            self._note("parked", step=step, num_workers=len(current.tokens))
        return waits

    def approve(self, num_workers: int) -> bool:
        """Lets the worker group be ended for one of another size.

        Guarantee:
            Only while every charged step of the attempt is in a registered checkpoint
            and no worker makes another. The next roster then continues the attempt
            from there, so a planned resize makes no step twice.
        """
        return self.boundary.approve(num_workers)

    # -- what scaling decisions say and see --------------------------------------

    def tell(self, decision: dict[str, Any], *, is_new: bool) -> None:
        """Takes the newest decision for the display; a new one is an event."""
        self.decision = decision
        if is_new:
            self._note("scaling", **decision)

    def view(self) -> dict[str, Any]:
        """Returns what scaling decisions need of it; none of it is private."""
        return {"step_times": self.step_times, "boundary": self.boundary.to_dict()}

    def _note(self, kind: str, **fields: Any) -> None:
        if self._events is not None:
            self._events.write({"event": kind, **fields})
