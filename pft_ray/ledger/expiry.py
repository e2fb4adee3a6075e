"""Time limits of reservations, by a clock that only goes forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.errors import LedgerLockedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.ledger.queue import LedgerQueue


class ReservationClock:
    """Gives reservations back whose time limit has passed in full while it watched.

    The ledger holds the limit, never a time. This object remembers, in memory alone,
    when it first saw each reservation that nothing was charged to. So a limit starts
    anew with each process that watches, and with each coordinator that takes the run;
    a wall clock that is set changes nothing.

    Args:
        queue: The ledger's queue.
        clock: Returns seconds that never go back, such as :func:`time.monotonic`.

    Guarantee:
        A reservation goes back only while nothing of it was charged: the ledger
        decides between expiry and a first grant, in the order of its rows.
    """

    def __init__(self, queue: LedgerQueue, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._clock = clock
        self._first_seen_s: dict[tuple[str, int], float] = {}

    def tick(self) -> tuple[str, ...]:
        """Looks once; cheap when nothing has a time limit.

        Returns:
            The runs whose reservations went back.
        """
        limits = self._queue.limited()
        now_s = self._clock()
        seen = self._first_seen_s
        self._first_seen_s = {key: seen.get(key, now_s) for key in limits}
        passed = [
            key
            for key, limit_s in limits.items()
            if now_s - self._first_seen_s[key] >= limit_s
        ]
        return tuple(run_id for run_id, epoch in passed if self._expire(run_id, epoch))

    def _expire(self, run_id: str, epoch: int) -> bool:
        try:
            return self._queue.expire(run_id, epoch)
        except LedgerLockedError:
            return False  # others are busy there; the next look tries again
