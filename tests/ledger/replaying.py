"""What tests of the store share."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import psycopg

from pft_ray.ledger import Ledger, LedgerState, apply
from pft_ray.ledger.entries import read_entry

ROOT = Path(__file__).parents[2]


def replay(path: Path | str) -> LedgerState:
    """The state from raw rows, by the pure core alone."""
    state = LedgerState()
    if isinstance(path, str):
        with psycopg.connect(path) as server:
            for number, *texts in server.execute(
                "SELECT seq, kind, body, prev_hash, hash FROM entries ORDER BY seq"
            ):
                apply(state, read_entry((number, *(t.encode() for t in texts))))
        return state
    with closing(sqlite3.connect(path)) as connection:
        for row in connection.execute(
            "SELECT seq, CAST(kind AS BLOB), CAST(body AS BLOB), "
            "CAST(prev_hash AS BLOB), CAST(hash AS BLOB) FROM entries ORDER BY seq"
        ):
            apply(state, read_entry(row))
    return state


def running(ledger: Ledger) -> LedgerState:
    """The state that the ledger keeps in memory, without reading the file again."""
    return ledger._chain._state


def run_python(
    script: str, *arguments: object, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(
        [*before, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
