"""What an error of PostgreSQL means for the ledger, by its SQLSTATE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy.exc import DBAPIError

from pft_ray.errors import (
    LedgerConnectionLostError,
    LedgerError,
    LedgerLockedError,
    LedgerStorageError,
    LedgerUnreachableError,
    PftError,
    VerificationError,
)

if TYPE_CHECKING:
    from pft_ray.ledger.postgres_url import PostgresUrl

_LOCKED = ("55P03", "40P01")
# The server ends the session; class 08 is the connection itself.
_GONE = ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04")
_READ_ONLY = "25006"
_DISK_FULL = "53100"
_DAMAGED = ("XX001", "XX002")
_SAME_RIGHTS = "42501"


def typed_error(raised: Exception, url: PostgresUrl) -> PftError:
    """Returns the project's error for one of the driver's.

    Only the first line of the server's message is kept: its details repeat values.
    """
    error = raised.orig if isinstance(raised, DBAPIError) else raised
    state = getattr(error, "sqlstate", None) or ""
    if not state and isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError
    ):
        return lost()
    if state.startswith("08") or state in _GONE:
        return lost()
    diagnosis = getattr(error, "diag", None)
    text = url.scrub(
        getattr(diagnosis, "message_primary", None) or type(error).__name__
    )
    details = {"sqlstate": state}
    if state in _LOCKED:
        return LedgerLockedError(
            f"Another process holds the write lock of {url}.",
            "Wait for it, or find what keeps the ledger open (pg_stat_activity).",
            details,
        )
    if state in _DAMAGED:
        return VerificationError(
            f"The ledger in {url} is damaged: {text}.",
            "Restore the database from a copy that verifies.",
            {**details, "page": None},
        )
    return _refused(state, text, url, details)


def _refused(
    state: str, text: str, url: PostgresUrl, details: dict[str, str]
) -> PftError:
    if state == _READ_ONLY:
        return read_only(url)
    if state == _DISK_FULL:
        return LedgerStorageError(
            f"The disk of {url} is full.",
            "Free space on the server; the append was not acknowledged.",
            details,
        )
    if state == _SAME_RIGHTS:
        return LedgerStorageError(
            f"The user may not use the ledger in {url}: {text}.",
            "Grant CREATE on the schema, SELECT and INSERT on its tables.",
            details,
        )
    if state.startswith("23"):
        return LedgerError(f"The ledger refused a row: {text}.", "", details)
    return LedgerStorageError(
        f"The database {url} failed: {text}.",
        "See the server's log; the append was not acknowledged.",
        details,
    )


def lost() -> LedgerConnectionLostError:
    """Returns the error for a connection that ended outside a commit."""
    return LedgerConnectionLostError(
        "The connection to the ledger's database was lost; nothing was appended.",
        "Ask again; nothing runs without the ledger.",
        {"outcome": "nothing"},
    )


def lost_in_commit() -> LedgerConnectionLostError:
    """Returns the error for a connection that ended during a commit."""
    return LedgerConnectionLostError(
        "The connection to the ledger's database was lost during a commit: whether "
        "the append is durable is not known.",
        "Ask again: the next call first reads what the ledger holds, and a repeated "
        "nonce returns the grant that was charged.",
        {"outcome": "unknown"},
    )


def unreachable(error: Exception, url: PostgresUrl) -> LedgerUnreachableError:
    """Returns the error for a server to which no connection can be made."""
    lines = url.scrub(str(error)).strip().splitlines() or ["no answer"]
    return LedgerUnreachableError(
        f"The ledger's database {url} cannot be reached: {lines[0].rstrip('.')}.",
        "Check that the server runs, its address, and user and password "
        "(PGPASSWORD or a password file keep them out of the URL).",
    )


def read_only(url: PostgresUrl) -> LedgerStorageError:
    """Returns the error for a standby or a session that may only read."""
    return LedgerStorageError(
        f"The database {url} only reads: it is a standby or set to read-only.",
        "Name the primary server (target_session_attrs=read-write finds it).",
        {"sqlstate": _READ_ONLY},
    )
