"""The walk over SQLite's pages: silent on sound files, exact on damaged ones."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from pft_ray.ledger.pages import first_bad_page


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with interior pages, long cells and every kind of b-tree page."""
    path = tmp_path_factory.mktemp("pages") / "sound.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE a (x INTEGER PRIMARY KEY, y TEXT)")
        connection.execute("CREATE TABLE b (k TEXT, v BLOB, PRIMARY KEY (k, v))")
        connection.execute("CREATE TABLE c (k BLOB PRIMARY KEY) WITHOUT ROWID")
        for number in range(400):
            text = "y" * (7 * number % 5000)
            connection.execute("INSERT INTO a VALUES (?, ?)", (number**3, text))
            connection.execute(
                "INSERT INTO b VALUES (?, ?)", (f"{number}{text[:1500]}", b"v")
            )
            key = number.to_bytes(2, "big") * (1 + number % 900)
            connection.execute("INSERT INTO c VALUES (?)", (key,))
        connection.commit()
        roots = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE rootpage > 0"
        ).fetchall()
    return path, [page for (page,) in roots]


def kinds(data: bytes) -> set[int]:
    return {data[start] for start in range(4096, len(data), 4096)}


def test_a_sound_file_has_no_bad_page(sound):
    path, roots = sound
    assert {2, 5, 10, 13} <= kinds(path.read_bytes())
    assert first_bad_page(path, roots) is None


@pytest.mark.parametrize("size", [512, 1024, 65536])
def test_other_page_sizes(tmp_path, size):
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {size}")
        connection.execute("CREATE TABLE a (x INTEGER PRIMARY KEY, y TEXT)")
        connection.executemany(
            "INSERT INTO a VALUES (?, ?)", ((i, "z" * i) for i in range(1000))
        )
        connection.commit()
    assert first_bad_page(path, [2]) is None


def test_every_root_that_is_not_one_is_named(sound, tmp_path):
    path, roots = sound
    data, copy = path.read_bytes(), tmp_path / "copy.db"
    for root in roots:
        changed = bytearray(data)
        changed[(root - 1) * 4096] = 99
        copy.write_bytes(changed)
        assert first_bad_page(copy, roots) == root


@pytest.mark.parametrize("page", [0, 10**6])
def test_a_child_outside_the_file_names_its_parent(sound, tmp_path, page):
    path, roots = sound
    data, copy = bytearray(path.read_bytes()), tmp_path / "copy.db"
    start = (roots[0] - 1) * 4096
    assert data[start] == 5  # an interior page: its last child is at 8
    data[start + 8 : start + 12] = page.to_bytes(4, "big")
    copy.write_bytes(data)
    assert first_bad_page(copy, roots) == roots[0]


def test_a_page_in_two_places_is_named(sound, tmp_path):
    path, roots = sound
    data, copy = bytearray(path.read_bytes()), tmp_path / "copy.db"
    start = (roots[0] - 1) * 4096
    data[start + 8 : start + 12] = roots[1].to_bytes(4, "big")
    copy.write_bytes(data)
    assert first_bad_page(copy, roots) == roots[1]


@pytest.mark.parametrize("size", [0, 511, 1000, 3])
def test_a_header_without_a_page_size_is_page_one(sound, tmp_path, size):
    data, copy = bytearray(sound[0].read_bytes()), tmp_path / "copy.db"
    data[16:18] = size.to_bytes(2, "big")
    copy.write_bytes(data)
    assert first_bad_page(copy, []) == 1
