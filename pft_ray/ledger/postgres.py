"""A ledger in PostgreSQL: one appender at a time, durable before acknowledged.

An append takes an advisory lock of its ledger before it reads, and holds it to the end
of its transaction. PostgreSQL releases it after the commit record is on the disk and
visible, and READ COMMITTED gives every statement a snapshot of its own: who holds the
lock sees every earlier append, so the chain is linear. The primary key on the sequence
number is the second wall, for a writer that takes no lock.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from pft_ray.errors import (
    InputError,
    LedgerConnectionLostError,
    LedgerError,
    LedgerFormatError,
    LedgerStorageError,
    PftError,
    VerificationError,
)
from pft_ray.ledger.postgres_errors import (
    lost,
    lost_in_commit,
    read_only,
    typed_error,
    unreachable,
)
from pft_ray.ledger.schema import check_schema, write_genesis
from pft_ray.ledger.store import Store
from pft_ray.ledger.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy.engine import Connection, CursorResult

    from pft_ray.ledger.entries import Entry
    from pft_ray.ledger.postgres_url import PostgresUrl

    Row = tuple[Any, ...]

_LOCK_CLASS = 0x7066745F  # "pft_": advisory locks are shared by all of a database
_CREATION = 0
_PAGE_ROWS = 5000
_MIN_SERVER = 130000
_DEFAULTS = {
    "application_name": "pft_ray ledger",
    "client_encoding": "UTF8",
    # A server that vanished is noticed within about half a minute.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
_FACTS = (
    "SELECT current_setting('server_version_num')::int, "
    "current_setting('server_encoding'), pg_is_in_recovery(), "
    "current_setting('synchronous_commit')"
)
_NOT_LOGGED = (
    "SELECT relname FROM pg_class WHERE relpersistence <> 'p' AND "
    "oid IN (to_regclass('meta'), to_regclass('entries'), to_regclass('fingerprints'))"
)
# Reads the catalogue itself: a name that was missing once may stay so in the session's
# cache while it waits for the lock.
_TABLE_NAMES = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid) "
    "AND relname IN ('meta', 'entries', 'fingerprints')"
)
_SETTINGS = ("synchronous_commit", "fsync", "full_page_writes")
_SHOWN = ", ".join(
    f"current_setting('{name}')" for name in (*_SETTINGS, "transaction_read_only")
)
_ENTRIES_OID = "SELECT coalesce(to_regclass('entries')::oid::bigint, 0)"
_ABANDONED_MS = 60_000


class PostgresStore(Store):
    """A store in a PostgreSQL database, in the first schema of its search path.

    Args:
        url: The database.
        timeout_s: How long to wait for a connection and for the write lock.
    """

    driver_errors = (psycopg.Error,)

    def __init__(self, url: PostgresUrl, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._in_transaction = False
        self._writes = False
        self._lock_key = _CREATION
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            use_native_hstore=False,
            paramstyle="format",
        )
        super().__init__(url, engine)

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            given = conninfo_to_dict(self._url.conninfo)
        except psycopg.Error:
            raise InputError(
                "The ledger's URL cannot be read.",
                "Write postgresql://HOST:PORT/DATABASE; see libpq's parameters.",
            ) from None
        options = {
            "connect_timeout": str(max(2, round(self._timeout_s))),
            **_DEFAULTS,
            **given,
        }
        try:
            return psycopg.connect(autocommit=True, **options)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            raise unreachable(error, self._url) from None

    @property
    def title(self) -> str:
        """The database without credentials."""
        return f"The database {self._url}"

    def _typed(self, raised: Exception) -> PftError:
        return typed_error(raised, self._url)

    # -- connection -------------------------------------------------------------

    def _open(self) -> Connection:
        try:
            return super()._open()
        except SQLAlchemyError as error:
            raise self._typed(error) from None

    def _drop(self) -> None:
        with suppress(SQLAlchemyError, psycopg.Error):
            self.connection.invalidate()
        with suppress(SQLAlchemyError, psycopg.Error):
            self.connection.close()

    def _reconnect(self) -> None:
        """Connects anew; waits until what the lost session had begun is decided.

        The server may still work on a commit whose client is gone. It holds the write
        lock until it is done, so whoever gets the lock reads the outcome.
        """
        self._drop()
        self.connection = self._open()
        if self._writes:
            self.prepare_for_writing()
            super().execute(f"SELECT pg_advisory_xact_lock({self._lock})")

    def execute(
        self, statement: str, parameters: Row | list[Row] = ()
    ) -> CursorResult[Any]:
        """Runs one statement; outside a transaction a lost connection is replaced."""
        if self.connection.closed:
            self._reconnect()
        try:
            return super().execute(statement, parameters or None)  # type: ignore[arg-type]
        except LedgerConnectionLostError:
            if self._in_transaction:
                raise
            self._reconnect()
            return super().execute(statement, parameters or None)  # type: ignore[arg-type]

    @property
    def _status(self) -> TransactionStatus:
        driver = None
        if not self.connection.closed and not self.connection.invalidated:
            driver = self.connection.connection.dbapi_connection
        if driver is None:
            return TransactionStatus.UNKNOWN
        status: TransactionStatus = driver.info.transaction_status
        return status

    # -- what the server has to promise -------------------------------------------

    def prepare_for_writing(self) -> None:
        """Makes the session durable and refuses a server that cannot be.

        Raises:
            LedgerStorageError: A standby, or settings that can lose a commit.
            LedgerFormatError: The database does not hold every text, or is too old.
        """
        version, encoding, is_standby, commit = self.fetch(_FACTS)[0]
        if version < _MIN_SERVER:
            raise LedgerFormatError(
                f"The server of {self._url} is PostgreSQL {version // 10000}.",
                "The ledger needs 13 or newer.",
            )
        if encoding != "UTF8":
            raise LedgerFormatError(
                f"The database {self._url} has the encoding {encoding}.",
                "Create it with ENCODING 'UTF8'.",
                {"encoding": encoding},
            )
        if is_standby:
            raise read_only(self._url)
        if commit not in ("on", "remote_apply"):
            self.execute("SET synchronous_commit = on")
        self.execute(f"SET lock_timeout = {max(1, round(1000 * self._timeout_s))}")
        # Zero means none: a commit that was cancelled half-way must not look done.
        self.execute("SET statement_timeout = 0")
        self.execute(f"SET idle_in_transaction_session_timeout = {_ABANDONED_MS}")
        self._require_durable(self.fetch(f"SELECT {_SHOWN}")[0])
        self._require_logged()
        ((oid,),) = self.fetch(_ENTRIES_OID)
        self._lock_key = oid - 2**32 if oid >= 2**31 else oid
        self._writes = True

    def _require_logged(self) -> None:
        for (name,) in self.fetch(_NOT_LOGGED):
            raise LedgerStorageError(
                f"The table {name} in {self._url} is not written ahead to the log.",
                f"ALTER TABLE {name} SET LOGGED: a crash would empty it.",
                {"table": name},
            )

    def _require_durable(self, found: Row) -> None:
        *settings, is_read_only = found
        for name, value in zip(_SETTINGS, settings, strict=True):
            if value == "off":
                raise LedgerStorageError(
                    f"The server of {self._url} has {name} = off: a crash could lose "
                    "what was charged.",
                    f"Set {name} = on; nothing is charged without it.",
                    {"setting": name},
                )
        if is_read_only == "on":
            raise read_only(self._url)

    # -- transactions -------------------------------------------------------------

    @property
    def _lock(self) -> str:
        return f"{_LOCK_CLASS}, {self._lock_key}"

    def _begin(self) -> None:
        self.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        self._in_transaction = True
        try:
            found = self.fetch(f"SELECT pg_advisory_xact_lock({self._lock}), {_SHOWN}")
            self._require_durable(found[0][1:])
        except BaseException:
            self._roll_back()
            raise

    def begin_reading(self) -> None:
        """Starts a read-only transaction with one snapshot; works on a standby."""
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._in_transaction = True

    def _commit(self) -> None:
        # The server answers COMMIT of a failed transaction by rolling back, politely.
        if self._status is not TransactionStatus.INTRANS:
            raise (
                lost()
                if self._status is TransactionStatus.UNKNOWN
                else LedgerError(
                    "The transaction of an append had failed before its commit.",
                    "Nothing was appended; ask again.",
                )
            )
        try:
            self.execute("COMMIT")
        except LedgerConnectionLostError:
            raise lost_in_commit() from None
        self._in_transaction = False

    def _roll_back(self) -> None:
        self._in_transaction = False
        status = self._status
        if status is TransactionStatus.IDLE:
            return
        if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with suppress(PftError):
                super().execute("ROLLBACK")
                return
        self._drop()

    # -- rows ---------------------------------------------------------------------

    def rows_from(self, sequence: int) -> Generator[Row]:
        """Yields rows from ``sequence`` upwards, a page at a time."""
        while True:
            rows = self.fetch(self.sql.page_from, (sequence, _PAGE_ROWS))
            yield from rows
            if len(rows) < _PAGE_ROWS:
                return
            sequence = rows[-1][0] + 1

    def rows_down(self) -> Generator[Row]:
        """Yields rows from the newest to the oldest, a page at a time."""
        before = 2**63 - 1
        while True:
            rows = self.fetch(self.sql.page_down, (before, _PAGE_ROWS))
            yield from rows
            if len(rows) < _PAGE_ROWS:
                return
            before = rows[-1][0]

    def table_names(self) -> set[str]:
        """Returns the ledger's tables that the search path finds."""
        return {name for (name,) in self.fetch(_TABLE_NAMES)}

    def find_damage(self) -> VerificationError | None:
        """Nothing: the server checks its own pages when their rows are read."""
        return None

    def first_row_of_another_type(self) -> int | None:
        """None: the columns' types hold."""
        return None

    def create(self, genesis: Entry) -> None:
        """Makes the tables and the first entry, or leaves what is there."""
        self.prepare_for_writing()
        self._lock_key = _CREATION
        with self.transaction():
            if self.table_names():
                return
            try:
                metadata.create_all(self.connection, checkfirst=False)
            except DBAPIError as error:
                raise self._typed(error) from None
            write_genesis(self, genesis)


def open_for_writing(
    url: PostgresUrl, timeout_s: float, genesis: Entry | None
) -> tuple[Store, str]:
    """Opens a ledger in a database; returns its store and the id it names.

    Args:
        url: The database.
        timeout_s: How long to wait for a connection and for the write lock.
        genesis: First entry of a new ledger, None when none shall be made.

    Raises:
        InputError: There is no ledger and ``genesis`` is None.
        LedgerFormatError: Other tables have its names, or a newer version wrote it.
        LedgerUnreachableError: No connection.
        LedgerStorageError: The server cannot promise durable commits.
    """
    store = PostgresStore(url, timeout_s)
    try:
        if not store.table_names():
            if genesis is None:
                raise InputError(
                    f"There is no ledger in {url}.",
                    "Name another database, or make one with `pft budget create`.",
                )
            store.create(genesis)
        ledger_id = check_schema(store)
        store.prepare_for_writing()
    except BaseException:
        store.close()
        raise
    return store, ledger_id
