"""The file: several processes, locks, refused writes, schema, and what is durable."""

from __future__ import annotations

import ast
import multiprocessing
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

import pft_ray.ledger
from pft_ray.errors import (
    BudgetError,
    InputError,
    LedgerBehindError,
    LedgerError,
    LedgerLockedError,
    LedgerStorageError,
    PftError,
    VerificationError,
)
from pft_ray.ledger import Ledger
from pft_ray.ledger.store import Store
from tests.ledger.builders import (
    TRAIN,
    add_blocks,
    live_through,
    location,
    make_envelopes,
    make_full_ledger,
    make_plan,
    nonce,
    num_rows,
    open_ledger,
    raw,
    start_run,
    where,
)
from tests.ledger.conftest import sqlite_only
from tests.ledger.replaying import replay, run_python, running

# -- opening ------------------------------------------------------------------------


def test_a_ledger_is_made_only_when_asked(tmp_path):
    with pytest.raises(InputError, match="no ledger"):
        Ledger.open(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []
    with open_ledger(tmp_path) as ledger:
        ledger_id = ledger.ledger_id
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as again:
        assert again.ledger_id == ledger_id
        assert again.position().sequence == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.db"]


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://h/db", "file:x", ""]
)
def test_refuses_what_is_not_a_file(url):
    with pytest.raises(InputError):
        Ledger.open(url, create=True)


def test_the_files_are_the_owners(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        for path in (*tmp_path.glob("ledger.db*"), tmp_path / "keys/fingerprint.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_an_empty_file_is_damage_and_never_a_new_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    path.touch()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(path, create=True)
    assert path.stat().st_size == 0


def test_another_database_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entries (x)")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(path, create=True)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_named_damaged(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(VerificationError, match="page 1"):
        Ledger.open(path, create=True)


def test_refuses_a_newer_schema(tmp_path):
    path = make_full_ledger(tmp_path)
    raw(path, "UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    with pytest.raises(LedgerError, match="schema 2") as caught:
        Ledger.open(path)
    assert caught.value.details == {"schema": 2}
    assert "pgrade" in caught.value.fix


def test_an_unknown_kind_of_entry_stops_everything(tmp_path):
    """A valid chain with a row of a kind to come: nothing runs on what is unknown."""
    from pft_ray.ledger.entries import make_entry

    path = make_full_ledger(tmp_path)
    entry = make_entry(replay(path).position, "filter_charge", {"rho": 1})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (entry.sequence, entry.kind, entry.text, entry.previous, entry.hash),
        )
    with pytest.raises(VerificationError, match="Unknown ledger entry kind"):
        Ledger.open(path)


@sqlite_only
def test_settings_are_the_durable_ones(ledger):
    store = ledger._chain.store
    assert store.fetch("PRAGMA journal_mode") == [("wal",)]
    assert store.fetch("PRAGMA synchronous") == [(2,)]
    assert store.fetch("PRAGMA fullfsync") == [(1,)]


def test_sqlite_refuses_to_change_or_remove_rows(tmp_path):
    path = make_full_ledger(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "UPDATE entries SET body = '{}' WHERE seq = 2",
            "DELETE FROM entries WHERE seq = 2",
            "UPDATE fingerprints SET dataset = 'x'",
            "DELETE FROM fingerprints",
        ):
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                connection.execute(statement)


# -- state and store ----------------------------------------------------------------


def test_the_running_state_is_the_replay(place):
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        live_through(ledger)
        assert running(ledger) == replay(where(ledger))
    with open_ledger(place) as again:
        assert running(again) == replay(where(again))


def test_a_charge_costs_few_statements_whatever_came_before(ledger, monkeypatch):
    """The append path neither re-reads the past nor grows with it."""
    epoch, attempt = start_run(
        ledger, phases=make_plan().phases * 30, size=100_000, delta=1e-6
    )
    statements, rows = [], []
    execute, read = Store.execute, Store._rows

    def count(self, statement, parameters=()):
        statements.append(statement.split()[0])
        return execute(self, statement, parameters)

    def count_rows(self, result):
        for row in read(self, result):
            rows.append(row)
            yield row

    monkeypatch.setattr(Store, "execute", count)
    monkeypatch.setattr(Store, "_rows", count_rows)
    for step in (0, 1, 200):
        if step == 200:
            for other in range(2, 200):
                ledger.charge_steps(
                    "run", epoch, attempt, other, other + 1, nonce(other)
                )
        statements.clear()
        rows.clear()
        ledger.charge_steps("run", epoch, attempt, step, step + 1, nonce(step))
        # PostgreSQL takes its lock in a statement of its own.
        lock = [] if isinstance(where(ledger), Path) else ["SELECT"]
        assert statements == ["BEGIN", *lock, "SELECT", "INSERT", "COMMIT"]
        assert len(rows) == 1 + len(lock)


def test_two_ledgers_on_one_store_see_each_other(place):
    with open_ledger(place) as one, open_ledger(place) as two:
        add_blocks(one)
        epoch, attempt = start_run(two)
        one.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
        assert two.run_status("run").num_steps_charged == 4
        assert two.take_epoch("run") == 2
        with pytest.raises(PftError):
            one.charge_steps("run", epoch, attempt, 4, 8, nonce(1))
        assert running(one) == running(two) == replay(where(one))


def _race(folder: str, name: str, barrier, results) -> None:
    plan = make_plan(evaluation=None)
    with open_ledger(Path(folder)) as ledger:
        barrier.wait()
        try:
            ledger.reserve(name, plan, make_envelopes(plan, 1.0))
        except BudgetError:
            results.put((name, "refused"))
        else:
            results.put((name, "reserved"))


def test_two_processes_never_both_get_the_last_envelope(place):
    plan = make_plan(evaluation=None)
    context = multiprocessing.get_context("fork")
    with open_ledger(place) as ledger:
        add_blocks(ledger)
    for round_ in range(2):
        with open_ledger(place) as ledger:
            ledger.reserve(f"before-{round_}", plan, make_envelopes(plan, 0.5))
    barrier, results = context.Barrier(4), context.Queue()
    racers = [
        context.Process(target=_race, args=(str(place), f"r{i}", barrier, results))
        for i in range(4)
    ]
    for racer in racers:
        racer.start()
    outcomes = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    won = sorted(name for name, outcome in outcomes.items() if outcome == "reserved")
    assert len(won) == 2  # epsilon 3 - 2 * 0.5 holds two of them
    with open_ledger(place) as ledger:
        assert ledger.block_status(TRAIN).remaining_epsilon == 0
        names = {run.run_id for run in ledger.runs()}
        assert names == {"before-0", "before-1", *won}


def _create(folder: str, barrier, results) -> None:
    barrier.wait()
    with open_ledger(Path(folder)) as ledger:
        results.put((ledger.ledger_id, ledger.fingerprint_key()))


def test_processes_that_create_a_ledger_at_once_share_it(place):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    makers = [
        context.Process(target=_create, args=(str(place), barrier, results))
        for _ in range(4)
    ]
    for maker in makers:
        maker.start()
    seen = {results.get(timeout=60) for _ in makers}
    for maker in makers:
        maker.join(timeout=60)
    assert len(seen) == 1
    assert num_rows(location(place)) == 1
    assert not list(place.glob(".ledger.db.*"))


def test_threads_share_a_ledger(ledger):
    epoch, attempt = start_run(ledger)
    errors, granted = [], []

    def ask(number: int) -> None:
        for step in range(20):
            try:
                ledger.charge_steps(
                    "run", epoch, attempt, step, step + 1, nonce(100 * number + step)
                )
                granted.append(step)
            except PftError as error:
                errors.append(error.code)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) <= {"grant-refused"}
    assert len(granted) == len(set(granted))
    assert ledger.run_status("run").num_steps_charged == len(granted)
    assert running(ledger) == replay(where(ledger))


def test_a_forked_child_has_to_open_its_own(ledger):
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def use() -> None:
        try:
            ledger.position()
        except LedgerError as error:
            results.put(error.message)
        else:
            results.put("worked")

    child = context.Process(target=use)
    child.start()
    assert "before a fork" in results.get(timeout=60)
    child.join(timeout=60)
    assert ledger.position().sequence == 4


# -- refused writes -----------------------------------------------------------------


def test_a_held_lock_is_named(tmp_path):
    with open_ledger(tmp_path, timeout_s=0.2) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerLockedError):
                ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
            assert ledger.run_status("run").num_steps_charged == 0
            other.execute("ROLLBACK")
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
        assert ledger.run_status("run").num_steps_charged == 1


@pytest.mark.parametrize("is_durable", [False, True], ids=["lost", "durable"])
def test_after_a_failed_commit_the_state_is_what_the_file_holds(
    ledger, monkeypatch, is_durable
):
    """A commit that raises may or may not be on the disk: the file decides."""
    epoch, attempt = start_run(ledger)
    execute = Store.execute

    def fail(self, statement, parameters=()):
        if statement == "COMMIT":
            if is_durable:
                execute(self, statement)
            raise LedgerStorageError("The disk is full.")
        return execute(self, statement, parameters)

    monkeypatch.setattr(Store, "execute", fail)
    with pytest.raises(LedgerStorageError):
        ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    monkeypatch.undo()
    assert ledger.run_status("run").num_steps_charged == (4 if is_durable else 0)
    assert running(ledger) == replay(where(ledger))
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    assert ledger.run_status("run").num_steps_charged == 4
    assert running(ledger) == replay(where(ledger))


def test_a_refused_entry_leaves_state_and_file_alone(ledger):
    before, rows = replay(where(ledger)), num_rows(where(ledger))
    with pytest.raises(PftError):
        ledger.take_epoch("nobody")
    assert running(ledger) == before
    assert num_rows(where(ledger)) == rows


def test_an_interrupt_inside_an_append_leaves_no_open_transaction(ledger, monkeypatch):
    epoch, attempt = start_run(ledger)

    def interrupt(self, entry):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "insert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    monkeypatch.undo()
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    assert running(ledger) == replay(where(ledger))


def test_a_ledger_that_shrinks_while_open_is_noticed(place):
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        last = ledger.position().sequence
        raw(where(ledger), f"DELETE FROM entries WHERE seq = {last}")
        with pytest.raises(LedgerBehindError):
            ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
        with pytest.raises(LedgerBehindError):
            ledger.position()


def test_a_ledger_that_is_swapped_for_another_branch_is_noticed(place):
    """The last row has the same number and is valid, but it is not ours."""
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        before = ledger.position().sequence
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
        raw(where(ledger), f"DELETE FROM entries WHERE seq > {before}")
        with Ledger.open(where(ledger)) as other:
            other.charge_steps("run", epoch, attempt, 0, 1, nonce(1))
        with pytest.raises(LedgerBehindError):
            ledger.charge_steps("run", epoch, attempt, 1, 2, nonce(2))


def test_rows_that_another_process_forged_are_refused(place):
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        last = ledger.position().sequence
        raw(
            where(ledger),
            f"INSERT INTO entries SELECT {last + 1}, kind, body, prev_hash, hash "
            f"FROM entries WHERE seq = {last}",
        )
        with pytest.raises(VerificationError, match=f"row {last + 1}"):
            ledger.position()


# -- no clock, no torch, no Ray -----------------------------------------------------


def test_no_module_of_the_ledger_reads_a_clock():
    folder = Path(pft_ray.ledger.__file__).parent
    banned = {"time", "datetime", "calendar", "sched"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            # Waiting for a database needs one; whether it came back is all it decides.
            assert not names & banned or path.name == "patience.py", path.name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "CURRENT_TIMESTAMP" not in node.value, path.name


def test_rows_hold_no_time_and_no_key(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        live_through(ledger)
        key = ledger.fingerprint_key()
        ledger.close()
        data = b"".join(p.read_bytes() for p in tmp_path.glob("ledger.db*"))
    assert key not in data
    assert key.hex().encode() not in data


def test_the_ledger_loads_neither_torch_nor_ray():
    done = run_python(
        """
        import sys
        import pft_ray.ledger
        import pft_ray.ledger.verify
        print([m for m in ("torch", "ray", "scipy", "dp_accounting", "pandas")
               if m in sys.modules])
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
