"""Unplanned ends of attempts: how they are named, and when they end the run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pft_ray.errors import RunFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pft_ray.cluster.attempts import Attempt

NODE_LOSS = "node-loss"
WORKER_RESTART = "worker-restart"
_FATAL_REPEATS = 2
_UNPLANNED = (WORKER_RESTART, "void-step")
_AT = "-at-"


class FaultCount:
    """Ends without a public cause, by how far the attempt was charged.

    The place is part of the reason that the ledger keeps, so that later coordinators
    count it too.

    Args:
        reasons: The reasons of the run's attempts, as the ledger holds them.
    """

    def __init__(self, reasons: Iterable[str]) -> None:
        self._count: Counter[int] = Counter()
        self._public_cause = ""
        for reason in reasons:
            _, at, step = reason.partition(_AT)
            if at:
                self._count[int(step)] += 1

    def expect(self, public_cause: str) -> None:
        """Notes why the present roster will be replaced, told from outside of it."""
        self._public_cause = public_cause

    def forget_cause(self) -> None:
        """Drops a cause that explained no end: the roster was replaced as planned."""
        self._public_cause = ""

    def name(
        self, current: Attempt | None, tokens: list[bytes], reason: str
    ) -> tuple[str, int | None]:
        """Returns the reason for the ledger, and the place of an unplanned end.

        A roster of new incarnations over an open attempt is a worker restart, unless
        the cause is public: a node was lost.
        """
        cause, self._public_cause = self._public_cause, ""
        if current is None or current.ended:
            return reason, None
        if not set(tokens) & set(current.tokens):
            if cause:
                return cause, None
            reason = WORKER_RESTART
        if reason not in _UNPLANNED:
            return reason, None
        return at_step(reason, current.charged), current.charged

    def add(self, place: int | None) -> None:
        """Counts an end; ends the run for good at the second at one place.

        What happens twice in the steps of one grant may be a record's doing; going
        on, or not, would then tell of it.

        Raises:
            RunFailedError: One place ended the run twice without a public cause.
        """
        if place is not None:
            self._count[place] += 1
        for position, count in self._count.items():
            if count >= _FATAL_REPEATS:
                raise RunFailedError(
                    f"Workers ended without a public cause {count} times in the steps "
                    f"charged up to step {position}.",
                    "Nothing further is released. Look at the workers' logs, then "
                    "start a new run with --new.",
                )


def at_step(reason: str, place: int) -> str:
    """Returns a reason with its place, as the ledger keeps it."""
    return f"{reason}{_AT}{place}"
