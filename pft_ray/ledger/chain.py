"""The chain in use: one append at a time, and a state that equals what is durable.

An append is one transaction: take the store's write lock, apply what other processes
appended meanwhile (with their hashes), check the new entry against the state, insert,
commit, and only then change the state. If anything fails the state has not moved, and
the next call first reads what the store really holds.

A chain with patience goes on by itself when its database went away and came back. An
append that was broken off in its commit is looked up before it is made again.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from pft_ray.errors import (
    BudgetError,
    LedgerBehindError,
    LedgerError,
    VerificationError,
)
from pft_ray.ledger.entries import Body, Entry, make_entry
from pft_ray.ledger.observers import (
    BudgetEvent,
    Observers,
    events_of,
    refusal,
    spent_of,
)
from pft_ray.ledger.patience import is_ours, until_back
from pft_ray.ledger.state import LedgerState, advance, check, replay_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pft_ray.ledger.store import Store


class Chain:
    """The entries of one store and the state they replay to.

    Threads may share a chain: calls take a lock. Processes may share the store, each
    with a chain of its own: a chain that a fork carried into a child refuses to work
    there, because SQLite connections do not survive a fork.

    Args:
        store: Where the entries are.
        patience_s: How long a call waits for a database that went away, in seconds.
    """

    def __init__(self, store: Store, patience_s: float = 0.0) -> None:
        self.store = store
        self.observers = Observers()
        self.patience_s = patience_s
        self._state = LedgerState()
        self._lock = threading.RLock()
        self._process = os.getpid()
        with self.reading():
            pass

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise LedgerError(
                "The ledger was opened before a fork.",
                "Open it again in the process that uses it.",
            )
        with self._lock:
            yield

    def require_id(self, ledger_id: str) -> None:
        """Checks that the store's own id is the one of the first entry.

        Raises:
            VerificationError: It is another.
        """
        if self._state.ledger_id != ledger_id:
            raise VerificationError(
                "The ledger's meta table names another ledger than its first row.",
                "Restore the ledger from a copy that verifies.",
                {"row": "meta"},
            )

    @contextmanager
    def reading(self) -> Iterator[LedgerState]:
        """Lends the state as the store has it now; the borrower changes nothing."""
        with self._locked():
            until_back(self._catch_up, self.patience_s)
            yield self._state

    def append(
        self,
        kind: str,
        build: Callable[[LedgerState], Body | None],
        also: Callable[[LedgerState], None] | None = None,
    ) -> Entry | None:
        """Appends one entry durably.

        Args:
            kind: The entry's kind.
            build: Returns its body from the state at the moment of the append, None
                when nothing needs to be appended, or raises to refuse.
            also: Further writes of the same transaction, after the entry.

        Returns:
            The entry, on disk when this returns; None when ``build`` gave None.

        Raises:
            PftError: Whatever ``build``, the rules or the store refuse. The state is
                then what the store holds.

        Guarantee:
            However often the connection is lost meanwhile, the row is appended at
            most once, except one that takes an epoch.
        """
        tried: list[Entry] = []
        spent: dict[str, int] = {}
        told: list[BudgetEvent] = []
        try:
            with self._locked():
                entry = until_back(
                    lambda: self._append(kind, build, also, tried, spent),
                    self.patience_s,
                )
                if entry is not None and self.observers:
                    told = events_of(entry, self._state, spent)
        except BudgetError as error:
            self.observers.tell([refusal(kind, error)])
            raise
        # Nobody is told under the lock: a subscriber may ask the ledger.
        self.observers.tell(told)
        return entry

    def _append(
        self,
        kind: str,
        build: Callable[[LedgerState], Body | None],
        also: Callable[[LedgerState], None] | None,
        tried: list[Entry],
        spent: dict[str, int],
    ) -> Entry | None:
        """Appends once; notes in ``tried`` and ``spent`` what was tried and used."""
        with self.store.transaction():
            self._catch_up()
            for earlier in tried:
                if self._holds(earlier):
                    return earlier
            body = build(self._state)
            if body is None:
                return None
            check(self._state, kind, body)
            entry = make_entry(self._state.position, kind, body)
            tried[:] = [entry]
            if self.observers:
                spent.update(spent_of(self._state, entry))
            self.store.insert(entry)
            if also is not None:
                also(self._state)
        advance(self._state, entry)
        return entry

    def _holds(self, entry: Entry) -> bool:
        """Whether the commit that was broken off made our row durable."""
        if not is_ours(entry) or self._state.position.sequence < entry.sequence:
            return False
        with closing(self.store.rows_from(entry.sequence)) as rows:
            return bool(next(rows)[4] == entry.hash.encode())

    def _catch_up(self) -> None:
        """Applies the rows after the state's position; the one there must be ours."""
        position = self._state.position
        with closing(self.store.rows_from(position.sequence)) as rows:
            if position.sequence:
                row = next(rows, None)
                if (
                    row is None
                    or row[0] != position.sequence
                    or row[4] != position.root.encode()
                ):
                    raise LedgerBehindError(
                        f"The ledger lost row {position.sequence} while it was open.",
                        "It was replaced or rolled back: restore the newest copy.",
                        {"row": position.sequence},
                    )
            for row in rows:
                replay_row(self._state, row)
