"""Fixtures: a ledger on its own, in a file and in a PostgreSQL database.

A test that takes ``place`` or ``ledger`` runs on both stores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ledger.builders import URL_FILE, add_blocks, make_full_ledger, open_ledger
from tests.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pft_ray.ledger import Ledger


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole session of tests."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_place(postgres: PostgresServer, tmp_path: Path) -> Path:
    """A folder whose ledger lies in a new schema of the server."""
    (tmp_path / URL_FILE).write_text(postgres.new_schema())
    return tmp_path


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for a new ledger, once for each kind of store."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_place")
    return tmp_path


# For tests that look inside the file.
sqlite_only = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


@pytest.fixture
def empty_ledger(place: Path) -> Iterator[Ledger]:
    """A new ledger without data sets."""
    with open_ledger(place) as ledger:
        yield ledger


@pytest.fixture
def ledger(empty_ledger: Ledger) -> Ledger:
    """A ledger with one private data set and its two blocks (epsilon 3, delta 1e-4)."""
    add_blocks(empty_ledger)
    return empty_ledger


@pytest.fixture
def full(tmp_path):
    """The path of a closed ledger file with one whole run."""
    return make_full_ledger(tmp_path / "full")
