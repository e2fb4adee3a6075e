"""Where a ledger is, and which store opens it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pft_ray.errors import InputError, LedgerStorageError, MissingExtraError
from pft_ray.ledger import files
from pft_ray.ledger.bodies import genesis
from pft_ray.ledger.postgres_url import PostgresUrl, is_postgres, postgres_url
from pft_ray.ledger.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.ledger.store import Source, Store


def ledger_source(url_or_path: str | Path | PostgresUrl) -> Source:
    """Returns the file or database that a ledger's URL or path names.

    Raises:
        InputError: The URL cannot be read or is of another database.
        MissingExtraError: It is PostgreSQL's and the driver is not installed.
    """
    if isinstance(url_or_path, PostgresUrl):
        return url_or_path
    text = str(url_or_path)
    if not is_postgres(text):
        return files.ledger_path(url_or_path)
    url = postgres_url(text)
    if find_spec("psycopg") is None:
        raise MissingExtraError(
            "A ledger in PostgreSQL needs the package psycopg.",
            "pip install pft-ray[postgres]",
        )
    return url


def open_for_writing(
    source: Source, timeout_s: float, *, create: bool
) -> tuple[Store, str]:
    """Opens a ledger; returns its store and the id it names.

    Raises:
        InputError: There is none and ``create`` is False.
        LedgerError: It cannot be used; see the stores.
    """
    if isinstance(source, PostgresUrl):
        from pft_ray.ledger import postgres

        first = genesis() if create else None
        return postgres.open_for_writing(source, timeout_s, first)
    if not source.exists():
        if not create:
            raise InputError(
                f"There is no ledger at {source}.",
                "Give another path, or make one with `pft budget create`.",
            )
        files.create_file(source, genesis(), timeout_s)
    return files.open_for_writing(source, timeout_s)


def open_for_reading(source: Source, timeout_s: float) -> Store:
    """Opens a ledger that is only looked at; a standby or a read-only file will do.

    Raises:
        InputError: There is none.
        LedgerError: It cannot be read.
    """
    if isinstance(source, PostgresUrl):
        from pft_ray.ledger.postgres import PostgresStore

        store = PostgresStore(source, timeout_s)
        if not store.table_names():
            store.close()
            raise InputError(f"There is no ledger in {source}.", "Name another one.")
        return store
    return _read_file(source, timeout_s)


def _read_file(path: Path, timeout_s: float) -> SqliteStore:
    if not path.exists():
        raise InputError(f"There is no ledger at {path}.", "Give another path.")
    try:
        store = SqliteStore(path, timeout_s, mode="ro")
        store.fetch("SELECT count(*) FROM sqlite_master")
    except LedgerStorageError:
        # A folder that cannot be written has no place for SQLite's shared memory.
        # Without a log and without writers the file alone is the ledger.
        log = path.with_name(f"{path.name}-wal")
        if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
        return SqliteStore(path, timeout_s, mode="immutable")
    return store
