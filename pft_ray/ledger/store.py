"""Durable rows of a ledger: what both databases share.

A store is one connection and the statements that the ledger runs on it. What differs
between SQLite and PostgreSQL is in :mod:`pft_ray.ledger.sqlite` and
:mod:`pft_ray.ledger.postgres`: how a connection is made, how the one write lock is
taken, what an error of the driver means and what can be wrong below the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from pft_ray.ledger.tables import Statements

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.engine import Connection, CursorResult, Engine

    from pft_ray.errors import PftError, VerificationError
    from pft_ray.ledger.entries import Entry
    from pft_ray.ledger.postgres_url import PostgresUrl

    Row = tuple[Any, ...]
    Source = Path | PostgresUrl


class Store(ABC):
    """One connection to one ledger. Not for use by two threads at once.

    Args:
        source: What the connection leads to.
        engine: Makes connections in autocommit mode, without a pool.
    """

    # What the driver raises outside SQLAlchemy's own calls.
    driver_errors: tuple[type[Exception], ...] = ()

    def __init__(self, source: Source, engine: Engine) -> None:
        self.source = source
        self._engine = engine
        self._raised: tuple[type[Exception], ...] = (
            DBAPIError,
            UnicodeDecodeError,
            *self.driver_errors,
        )
        self.sql = Statements(engine.dialect)
        self.connection = self._open()

    @property
    @abstractmethod
    def title(self) -> str:
        """What messages call the ledger; it never holds a credential."""

    @abstractmethod
    def prepare_for_writing(self) -> None:
        """Makes commits durable, or refuses.

        Raises:
            LedgerStorageError: The database cannot promise durable commits.
        """

    @abstractmethod
    def begin_reading(self) -> None:
        """Starts a transaction in which every read sees the same moment."""

    @abstractmethod
    def table_names(self) -> set[str]:
        """Returns the names of the tables that are there."""

    @abstractmethod
    def find_damage(self) -> VerificationError | None:
        """Returns what is wrong below the rows, if anything."""

    @abstractmethod
    def first_row_of_another_type(self) -> int | None:
        """Returns the first entry with a value that is not text."""

    @abstractmethod
    def _typed(self, raised: Exception) -> PftError:
        """Returns the project's error for one of the driver's."""

    @abstractmethod
    def _begin(self) -> None:
        """Begins a transaction that holds the ledger's one write lock."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Leaves no transaction open; gives the connection up where it cannot."""

    def _commit(self) -> None:
        self.execute("COMMIT")

    def _open(self) -> Connection:
        try:
            return self._engine.connect()
        except self._raised as error:
            raise self._typed(error) from error

    def close(self) -> None:
        """Closes the connection; the ledger stays as it is."""
        self.connection.close()
        self._engine.dispose()

    def execute(
        self, statement: str, parameters: Row | list[Row] = ()
    ) -> CursorResult[Any]:
        """Runs one statement of the driver's own SQL; errors come out typed."""
        try:
            return self.connection.exec_driver_sql(statement, parameters)
        except (DBAPIError, UnicodeDecodeError) as error:
            raise self._typed(error) from error

    def fetch(self, statement: str, parameters: Row = ()) -> list[Row]:
        """Returns all rows of a small result."""
        return list(self._rows(self.execute(statement, parameters)))

    def _rows(self, result: CursorResult[Any]) -> Generator[Row]:
        try:
            for row in result:
                yield tuple(row)
        except self._raised as error:
            raise self._typed(error) from error
        finally:
            result.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds the write lock; commits at the end, rolls back on any error.

        Raises:
            LedgerLockedError: Another process kept the lock for the whole timeout.
            LedgerStorageError: The storage did not take the commit.
            LedgerConnectionLostError: The server went away; when that was during the
                commit, only a later read tells whether it is durable.
        """
        self._begin()
        try:
            yield
            self._commit()
        except BaseException:
            self._roll_back()
            raise

    def rows_from(self, sequence: int) -> Generator[Row]:
        """Yields (seq, kind, body, prev_hash, hash) from ``sequence`` upwards."""
        return self._rows(self.execute(self.sql.rows_from, (sequence,)))

    def rows_down(self) -> Generator[Row]:
        """Yields rows from the newest to the oldest."""
        return self._rows(self.execute(self.sql.rows_down))

    def insert(self, entry: Entry) -> None:
        """Adds one entry inside the transaction."""
        self.execute(
            self.sql.insert_entry,
            (entry.sequence, entry.kind, entry.text, entry.previous, entry.hash),
        )

    def insert_fingerprints(
        self, dataset: str, namespace: str, digests: Sequence[bytes]
    ) -> None:
        """Adds the fingerprints of a data set inside the transaction."""
        rows: list[Row] = [(namespace, digest, dataset) for digest in digests]
        self.execute(self.sql.insert_fingerprint, rows)

    def overlapping(self, dataset: str) -> list[str]:
        """Returns the data sets that share a fingerprint with ``dataset``."""
        return [name for (name,) in self.fetch(self.sql.overlaps, (dataset,))]

    def digests(self, dataset: str, namespace: str) -> list[bytes]:
        """Returns the fingerprints of a data set, sorted."""
        return [
            digest for (digest,) in self.fetch(self.sql.digests, (namespace, dataset))
        ]

    def fingerprinted(self) -> list[tuple[str, str]]:
        """Returns the (data set, namespace) pairs that have fingerprints."""
        return [(name, space) for name, space in self.fetch(self.sql.fingerprinted)]
