"""Ledger files of SQLite: where they are, how they are made and opened."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from pft_ray.crypto import new_token
from pft_ray.errors import (
    InputError,
    LedgerFormatError,
    LedgerStorageError,
)
from pft_ray.ledger.filesystem import refuse_network_filesystem
from pft_ray.ledger.schema import check_schema, write_genesis
from pft_ray.ledger.sqlite import SqliteStore, typed_error
from pft_ray.ledger.tables import metadata

if TYPE_CHECKING:
    from pft_ray.ledger.entries import Entry

_SCHEME = "sqlite:///"


def ledger_path(url_or_path: str | Path) -> Path:
    """Returns the file that a ledger URL (``sqlite:///...``) or path names.

    Raises:
        InputError: The URL is of another database, or of one in memory.
    """
    text = str(url_or_path)
    if text.startswith(_SCHEME):
        text = text[len(_SCHEME) :]
    elif "://" in text:
        raise InputError(
            f"A ledger at {text.split('://', 1)[0]}://... is not supported.",
            "Give a path, sqlite:///path or postgresql://host/database.",
        )
    if not text or ":memory:" in text or text.startswith("file:"):
        raise InputError(
            "The ledger URL names no file.", "A ledger is durable: give a file."
        )
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        raise LedgerFormatError(
            f"The ledger {path} is a folder.", "Name a file in it, such as ledger.db."
        )
    return path


def create_file(path: Path, genesis: Entry, timeout_s: float) -> None:
    """Makes a ledger file whole and then gives it its name, or leaves what is there.

    Two processes that create the same ledger end up with one of the two; an empty or
    half-written file never appears under the name.
    """
    draft = path.with_name(f".{path.name}.{new_token().hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_network_filesystem(path)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with closing(SqliteStore(draft, timeout_s)) as store:
            store.prepare_for_writing()
            _write_genesis(store, genesis)
        with suppress(FileExistsError):
            os.link(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise LedgerStorageError(
            f"The ledger {path.name} cannot be created: {error.strerror}.",
            "Give a folder on a local disk that can be written.",
        ) from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{draft}{suffix}").unlink()


def _write_genesis(store: SqliteStore, genesis: Entry) -> None:
    try:
        metadata.create_all(store.connection)
    except DBAPIError as error:
        raise typed_error(error, store.path) from error
    with store.transaction():
        write_genesis(store, genesis)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_for_writing(path: Path, timeout_s: float) -> tuple[SqliteStore, str]:
    """Opens a ledger file that exists; returns its store and the id it names.

    Raises:
        LedgerError: The file is no ledger, or a newer version wrote it.
        LedgerStorageError: A network file system, or storage that fails.
    """
    refuse_network_filesystem(path)
    store = SqliteStore(path, timeout_s)
    try:
        ledger_id = check_schema(store)
        store.prepare_for_writing()
    except BaseException:
        store.close()
        raise
    return store, ledger_id
