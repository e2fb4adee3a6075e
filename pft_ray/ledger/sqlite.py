"""A ledger in an SQLite file: write-ahead log, full synchronisation, one writer.

``synchronous=FULL`` in WAL mode means that a commit returns after the log is on the
disk. A transaction begins with ``BEGIN IMMEDIATE``: it holds the file's one write
lock, so what it read is still true when it writes.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pft_ray.errors import (
    LedgerError,
    LedgerLockedError,
    LedgerStorageError,
    PftError,
    VerificationError,
)
from pft_ray.ledger.pages import first_bad_page
from pft_ray.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path

_MIN_SQLITE = (3, 37)
# What SQLite says when the first page, which holds the schema, is not what it was.
_SCHEMA_WORDS = (
    "not a database",
    "malformed database schema",
    "no such",
    "file format",
)
_PAGE = re.compile(r"[Pp]age (\d+)")
_TABLE_NAMES = "SELECT name FROM sqlite_master WHERE type = 'table'"
_TABLE_ROOTS = "SELECT rootpage FROM sqlite_master WHERE rootpage > 0"
_OTHER_TYPES = (
    "SELECT seq FROM entries WHERE 'text' <> typeof(kind) OR 'text' <> typeof(body) "
    "OR 'text' <> typeof(prev_hash) OR 'text' <> typeof(hash) ORDER BY seq LIMIT 1"
)
_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
    "PRAGMA checkpoint_fullfsync=ON",
)


def typed_error(raised: Exception, path: Path) -> PftError:
    """Returns the project's error for one of the database driver's."""
    error = raised.orig if isinstance(raised, DBAPIError) else raised
    if isinstance(error, UnicodeDecodeError) or "Could not decode" in str(error):
        return damage("a name or text in it is not UTF-8")
    code = getattr(error, "sqlite_errorname", "") or ""
    details = {"sqlite": code}
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerLockedError(
            f"Another process holds the write lock of {path.name}.",
            "Wait for it, or find what keeps the ledger open.",
            details,
        )
    # The statements are fixed: plain errors come from a schema that was altered.
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or code == "SQLITE_ERROR":
        return damage(str(error))
    if code.startswith("SQLITE_CONSTRAINT"):
        return LedgerError(f"The ledger refused a row: {error}.", "", details)
    return LedgerStorageError(
        f"The storage of {path.name} failed: {error}.",
        "Check free space, permissions and the disk; no charge was acknowledged.",
        details,
    )


def damage(text: str) -> VerificationError:
    """Returns the error for a damaged file; names the page when SQLite tells it."""
    match = _PAGE.search(text)
    page = int(match[1]) if match else None
    if page is None and any(words in text for words in _SCHEMA_WORDS):
        page = 1
    where = f"page {page}" if page is not None else "a page that SQLite does not name"
    return VerificationError(
        f"The ledger file is damaged at {where}: {text}.",
        "Restore the ledger from a copy that verifies.",
        {"page": page},
    )


class SqliteStore(Store):
    """A store in one file.

    Args:
        path: An existing file.
        timeout_s: How long to wait for another process's write lock.
        mode: ``rw`` or ``ro``; ``immutable`` reads a file that nothing can write.
    """

    driver_errors = (sqlite3.Error,)

    def __init__(self, path: Path, timeout_s: float, mode: str = "rw") -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._query = "immutable=1" if mode == "immutable" else f"mode={mode}"
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise LedgerError(
                f"Python's SQLite is {sqlite3.sqlite_version}.",
                "The ledger needs 3.37 or newer.",
            )
        engine = create_engine(
            "sqlite://",
            creator=self._connect,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
        super().__init__(path, engine)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(str(self.path))}?{self._query}",
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    @property
    def title(self) -> str:
        """The file's name."""
        return f"The file {self.path.name}"

    def prepare_for_writing(self) -> None:
        """Turns the write-ahead log and full synchronisation on.

        Raises:
            LedgerStorageError: SQLite cannot keep its log beside the file.
        """
        (journal,) = self.fetch("PRAGMA journal_mode=WAL")[0]
        for pragma in _PRAGMAS:
            self.execute(pragma)
        if journal != "wal":
            raise LedgerStorageError(
                f"SQLite cannot keep a write-ahead log beside {self.path.name}.",
                "Put the ledger on a local disk in a folder that can be written.",
            )

    def begin_reading(self) -> None:
        """Starts a transaction in which every read sees the same moment."""
        self.execute("BEGIN")

    def table_names(self) -> set[str]:
        """Returns the names of the tables in the file."""
        return {name for (name,) in self.fetch(_TABLE_NAMES)}

    def _typed(self, raised: Exception) -> PftError:
        return typed_error(raised, self.path)

    def _begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def _roll_back(self) -> None:
        driver = self.connection.connection.dbapi_connection
        if not getattr(driver, "in_transaction", False):
            return
        try:
            self.execute("ROLLBACK")
        except PftError:
            # A connection that cannot even roll back is given up with its cache.
            with suppress(DBAPIError, sqlite3.Error):
                self.connection.close()
            self.connection = self._open()
            self.prepare_for_writing()

    def find_damage(self) -> VerificationError | None:
        """Returns what is wrong with the file's structure, if anything."""
        try:
            lines = [str(line) for (line,) in self.fetch("PRAGMA integrity_check(20)")]
        except VerificationError as error:
            found = error
        else:
            if lines == ["ok"]:
                return None
            found = damage("; ".join(lines))
        log = self.path.with_name(f"{self.path.name}-wal")
        if found.details["page"] is None and not (log.exists() and log.stat().st_size):
            roots = [int(page) for (page,) in self.fetch(_TABLE_ROOTS)]
            page = first_bad_page(self.path, roots)
            if page is not None:
                return damage(f"page {page} is not a page of a table")
        return found

    def first_row_of_another_type(self) -> int | None:
        """Returns the first entry with a value that is not text."""
        rows = self.fetch(_OTHER_TYPES)
        return int(rows[0][0]) if rows else None
