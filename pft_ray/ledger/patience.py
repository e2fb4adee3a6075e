"""Waiting for a ledger's database that went away and comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from pft_ray.errors import LedgerConnectionLostError, LedgerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.ledger.entries import Entry

T = TypeVar("T")

_PAUSE_S = 0.2


def until_back(act: Callable[[], T], patience_s: float) -> T:
    """Does something on the database; again while it is away, for a bounded time.

    Args:
        act: What to do. It must be safe to begin anew after it was broken off.
        patience_s: How long to go on, in seconds; 0 tries once.

    Raises:
        LedgerUnreachableError: The database did not come back in time.
        LedgerConnectionLostError: It went away each time it was used.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except (LedgerConnectionLostError, LedgerUnreachableError):
            if time.monotonic() + _PAUSE_S > deadline:
                raise
            time.sleep(_PAUSE_S)


def is_ours(entry: Entry) -> bool:
    """Whether an equal row in the ledger is as good as the one that we wrote.

    A row under a run's fencing epoch is written by that epoch's owner alone; one that
    takes or moves budget has random bits of its own; the others (a block, leaving, a
    return) say the same whoever wrote them. The row that takes an epoch does not: two
    coordinators may try it in the same words, and both would believe that they own
    the run.
    """
    return entry.kind != "epoch"
