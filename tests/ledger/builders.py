"""Small ledgers for tests."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from pft_ray.accounting.plan import EvaluationPlan, Phase, Plan
from pft_ray.ledger import BlockSpec, Envelope, Ledger
from pft_ray.ledger.postgres_url import PostgresUrl

if TYPE_CHECKING:
    from pathlib import Path

SPLIT = {"kind": "hash-split", "salt": "s", "validation_fraction": 0.2}
URL_FILE = "ledger.url"
TRAIN, VALIDATION = "mail-train", "mail-validation"

# A driver that charges step after step, each told on stdout, until it is killed.
CHARGE_UNTIL_KILLED = """
    import os, sys
    from pathlib import Path
    from tests.ledger.builders import *

    ledger = open_ledger(Path(sys.argv[1]))
    epoch = ledger.take_epoch("run")
    start = ledger.run_status("run").num_steps_charged
    attempt = ledger.open_attempt("run", epoch, start, "coordinator-restart")
    for step in range(start, 20_000):
        ledger.charge_steps("run", epoch, attempt, step, step + 1, nonce(step))
        os.write(1, f"{step + 1}\\n".encode())
"""


def make_plan(**changes: Any) -> Plan:
    """A plan of 10 + 10 steps in two phases, reserve 5, grants of at most 4."""
    fields: dict[str, Any] = {
        "unit": "record",
        "size": 1000,
        "sample_rate": 0.1,
        "noise_multiplier": 1.0,
        "phases": (Phase("one", 10, "head", 1.0), Phase("two", 10, "head", 0.5)),
        "fault_reserve": 5,
        "delta": 1e-5,
        "grant_size": 4,
        "evaluation": EvaluationPlan(
            kind="classification",
            looks=(10, 20),
            num_spare_looks=1,
            sigma=10.0,
            size=200,
            epsilon=1.5,
            delta=1e-5,
        ),
    }
    return Plan(**{**fields, **changes})


def make_envelopes(
    plan: Plan,
    epsilon: float = 1.0,
    *,
    train: str = TRAIN,
    validation: str = VALIDATION,
) -> list[Envelope]:
    envelopes = [Envelope.priced(train, "training", epsilon, plan.delta, plan.event)]
    if plan.evaluation is not None:
        look = plan.evaluation
        envelopes.append(
            Envelope.priced(validation, "evaluation", epsilon, look.delta, look.event)
        )
    return envelopes


def fingerprints(start: int, count: int) -> np.ndarray:
    """Distinct 16-byte rows start .. start + count - 1."""
    rows = np.zeros((count, 16), dtype=np.uint8)
    rows[:, 8:] = (
        np.arange(start, start + count, dtype=">u8").view(np.uint8).reshape(count, 8)
    )
    return rows


def location(folder: Path) -> Path | str:
    """Where the ledger of a folder is: in a file there, or where its URL file says."""
    named = folder / URL_FILE
    return named.read_text() if named.exists() else folder / "ledger.db"


def where(ledger: Ledger) -> Path | str:
    """The file or URL of an open ledger."""
    source = ledger.source
    return source.secret if isinstance(source, PostgresUrl) else source


def open_ledger(folder: Path, **options: Any) -> Ledger:
    return Ledger.open(
        location(folder), keys_dir=folder / "keys", create=True, **options
    )


def add_blocks(
    ledger: Ledger,
    *,
    epsilon: float = 3.0,
    delta: float = 1e-4,
    public: bool = False,
) -> None:
    ledger.register_dataset(
        "mail",
        public=public,
        namespaces={"record": fingerprints(0, 50)},
        facts={"n": 9},
    )
    for name, role in ((TRAIN, "train"), (VALIDATION, "validation")):
        ledger.create_block(
            BlockSpec(
                name=name,
                dataset="mail",
                predicate={**SPLIT, "role": role},
                unit="record",
                epsilon=epsilon,
                delta=delta,
            )
        )


def start_run(ledger: Ledger, run_id: str = "run", **changes: Any) -> tuple[int, int]:
    """Reserves a run, takes its epoch and opens an attempt: (epoch, attempt)."""
    plan = make_plan(**changes)
    ledger.reserve(run_id, plan, make_envelopes(plan))
    epoch = ledger.take_epoch(run_id)
    return epoch, ledger.open_attempt(run_id, epoch, 0, "start")


def nonce(number: int) -> str:
    return f"{number:032x}"


def live_through(ledger: Ledger, run_id: str = "run") -> None:
    """A whole run with a restart, looks, a checkpoint and an end."""
    epoch, attempt = start_run(ledger, run_id)
    ledger.charge_steps(run_id, epoch, attempt, 0, 4, nonce(1))
    ledger.charge_steps(run_id, epoch, attempt, 4, 8, nonce(2))
    ledger.record_checkpoint(run_id, epoch, attempt, 8, "step-8")
    epoch = ledger.take_epoch(run_id)
    attempt = ledger.open_attempt(run_id, epoch, 8, "coordinator-restart")
    ledger.charge_steps(run_id, epoch, attempt, 8, 10, nonce(1))
    look = ledger.charge_look(run_id, epoch, "step-10")
    ledger.store_release(run_id, epoch, look, {"counts": [3, -1, 40]})
    ledger.end_run(run_id, epoch, "completed", 10)


def make_full_ledger(folder: Path) -> Path:
    """Writes a ledger with one whole run and returns its path, closed and merged."""
    with open_ledger(folder) as ledger:
        add_blocks(ledger)
        live_through(ledger)
        return ledger.path


def raw(path: Path | str, *statements: str) -> None:
    """Runs SQL as an attacker with the store would: triggers are dropped first."""
    if isinstance(path, str):
        with psycopg.connect(path, autocommit=True) as server:
            for table in ("entries", "fingerprints"):
                server.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            for statement in statements:
                server.execute(statement)
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for trigger in ("entries_no_update", "entries_no_delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            connection.execute(statement)


def num_rows(path: Path | str) -> int:
    if isinstance(path, str):
        with psycopg.connect(path) as server:
            return int(server.execute("SELECT count(*) FROM entries").fetchone()[0])
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    return int(count)


def price_nothing(event: Any, delta: float) -> float:
    """A stand-in accountant for tests that are not about prices."""
    return 1e-6
