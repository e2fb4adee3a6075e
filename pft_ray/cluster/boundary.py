"""Where a planned resize stands: asked for, met by the workers, approved, taken over.

A worker group is resized only between two grants, when every charged step was made
and a checkpoint of the last one is registered. Then no step is made twice, and the
attempt goes on under the next roster.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Stage = Literal["none", "wanted", "met", "parked", "approved"]

_PATIENCE_S = 60.0
_ENDING_S = 600.0


@dataclass
class Boundary:
    """The state of one planned resize of one attempt.

    Attributes:
        patience_s: How long workers wait at a boundary before they go on without a
            resize. Once it was approved they wait for ten minutes at least: their end
            is under way, and going on would charge steps that it throws away.
        clock: Monotonic seconds.
        stage: none; wanted (asked for); met (the grant at ``step`` was withheld);
            parked (its checkpoint is registered and the workers wait); approved (the
            group is about to end).
        step: The planned step that the workers stopped before.
        num_workers: Size of the group that is wanted.
    """

    patience_s: float = _PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    stage: Stage = "none"
    step: int = -1
    num_workers: int = 0
    _since: float = field(default=0.0)

    def want(self, num_workers: int) -> None:
        """Asks for a boundary; one that is under way is kept, with the new size."""
        if self.stage == "approved":
            return
        if self.stage == "none":
            self._move("wanted")
        self.num_workers = num_workers

    def withhold(self, step: int) -> bool:
        """Says whether the grant at ``step`` is withheld for a boundary.

        Every rank that asks for the same step gets the same answer until the boundary
        is left.
        """
        if self.stage == "wanted":
            self._move("met")
            self.step = step
        return self.stage != "none" and self.step == step

    def park(self, step: int) -> bool:
        """The workers have saved ``step`` and ask whether to wait on.

        Returns:
            False when they are to go on: the resize was given up, or took too long.
        """
        if self.stage == "none" or self.step != step:
            return False
        if self.stage == "met":
            self._move("parked")
        limit = self.patience_s
        if self.stage == "approved":
            limit = max(limit, _ENDING_S)
        if self.clock() - self._since > limit:
            self.leave()
            return False
        return True

    def approve(self, num_workers: int) -> bool:
        """Lets the group be ended; only while it is parked."""
        if self.stage != "parked":
            return False
        self._move("approved")
        self.num_workers = num_workers
        return True

    def takes_over(self, step: int) -> bool:
        """Says whether a roster that starts at ``step`` continues the attempt."""
        return self.stage == "approved" and self.step == step

    def reopened(self) -> None:
        """Another attempt was opened: a boundary has to be met anew."""
        if self.stage != "none":
            self._move("wanted")
            self.step = -1

    def leave(self) -> None:
        """Ends the boundary: given up, or taken over."""
        self._move("none")
        self.step, self.num_workers = -1, 0

    def give_up(self) -> None:
        """Gives a resize up unless the group may be ending already."""
        if self.stage != "approved":
            self.leave()

    def to_dict(self) -> dict[str, Any]:
        """Returns what the scaling side and the display need to know."""
        return {
            "stage": self.stage,
            "step": self.step,
            "num_workers": self.num_workers,
        }

    def _move(self, stage: Stage) -> None:
        self.stage = stage
        self._since = self.clock()
