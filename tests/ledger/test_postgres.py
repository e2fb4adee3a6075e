"""PostgreSQL under fire: many writers, killed servers and clients, unsafe servers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import closing

import psycopg
import pytest

from pft_ray.accounting.plan import Phase
from pft_ray.errors import (
    InputError,
    LedgerConnectionLostError,
    LedgerError,
    LedgerFormatError,
    LedgerLockedError,
    LedgerStorageError,
    LedgerUnreachableError,
    MissingExtraError,
    StaleCoordinatorError,
    VerificationError,
)
from pft_ray.ledger import Ledger, verify
from pft_ray.ledger.store import Store
from tests.ledger.builders import (
    CHARGE_UNTIL_KILLED,
    add_blocks,
    fingerprints,
    live_through,
    location,
    nonce,
    num_rows,
    open_ledger,
    price_nothing,
    raw,
    start_run,
    where,
)
from tests.ledger.replaying import ROOT, replay, running

LONG = {"phases": (Phase("long", 20_000, "head", 1.0),)}


@pytest.fixture
def pg(postgres_place):
    with open_ledger(postgres_place, timeout_s=5.0) as ledger:
        add_blocks(ledger)
        yield ledger


def charge(ledger, epoch, attempt, step):
    return ledger.charge_steps("run", epoch, attempt, step, step + 1, nonce(step))


def _write(folder, writer, results) -> None:
    with open_ledger(folder) as ledger:
        for number in range(15):
            ledger.mark_non_private("open", f"{writer}-{number}")
            results.put(f"{writer}-{number}")


def test_many_writers_make_one_chain(postgres_place):
    """No fork, no gap, no acknowledged append that is not there."""
    with open_ledger(postgres_place) as ledger:
        ledger.register_dataset(
            "open",
            public=True,
            namespaces={"record": fingerprints(0, 1)},
            facts={},
        )
        first = ledger.position().sequence
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [
        context.Process(target=_write, args=(postgres_place, i, results))
        for i in range(6)
    ]
    for writer in writers:
        writer.start()
    acknowledged = {results.get(timeout=60) for _ in range(6 * 15)}
    for writer in writers:
        writer.join(timeout=60)
    with open_ledger(postgres_place) as ledger:
        state = replay(where(ledger))
        assert state.sequence == first + 90 == num_rows(where(ledger))
        runs = [e.body["run"] for e in ledger.history(90)]
        assert set(runs) == acknowledged
        assert len(runs) == 90


def test_a_writer_without_the_lock_cannot_fork_the_chain(pg):
    """The primary key is the second wall."""
    url, last = where(pg), pg.position().sequence
    with (
        pytest.raises(psycopg.errors.UniqueViolation),
        psycopg.connect(url) as server,
    ):
        server.execute(f"INSERT INTO entries VALUES ({last}, 'x', 'x', 'x', 'x')")


def test_rows_cannot_be_changed_or_removed(pg):
    for statement in (
        "UPDATE entries SET body = '{}'",
        "DELETE FROM entries WHERE seq = 2",
        "TRUNCATE entries",
        "DELETE FROM fingerprints",
    ):
        with (
            pytest.raises(psycopg.Error, match="append-only"),
            psycopg.connect(where(pg)) as server,
        ):
            server.execute(statement)


def test_a_changed_row_is_named_by_verify(pg):
    live_through(pg)
    assert verify(pg, epsilon=price_nothing).num_entries == pg.position().sequence
    raw(where(pg), "UPDATE entries SET body = body || ' ' WHERE seq = 3")
    with pytest.raises(VerificationError, match="row 3"):
        verify(where(pg), epsilon=price_nothing)


def test_a_held_lock_is_named(postgres_place):
    with open_ledger(postgres_place, timeout_s=0.2) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        with closing(psycopg.connect(where(ledger))) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({ledger._chain.store._lock})")
            with pytest.raises(LedgerLockedError):
                charge(ledger, epoch, attempt, 0)
        charge(ledger, epoch, attempt, 0)
        assert running(ledger) == replay(where(ledger))


# -- killed servers, clients and connections ------------------------------


@pytest.mark.parametrize("is_durable", [False, True], ids=["before", "after"])
def test_a_connection_lost_in_a_commit_is_settled_by_asking_again(
    pg, monkeypatch, is_durable
):
    epoch, attempt = start_run(pg)
    execute = Store.execute

    def cut(self, statement, parameters=()):
        if statement == "COMMIT" and is_durable:
            execute(self, statement)
        if statement == "COMMIT":
            self.connection.connection.dbapi_connection.close()
            monkeypatch.undo()
        return execute(self, statement, parameters)

    monkeypatch.setattr(Store, "execute", cut)
    with pytest.raises(LedgerConnectionLostError) as caught:
        charge(pg, epoch, attempt, 0)
    assert caught.value.details == {"outcome": "unknown"}
    assert pg.run_status("run").num_steps_charged == int(is_durable)
    first = charge(pg, epoch, attempt, 0)
    assert charge(pg, epoch, attempt, 0) == first
    assert pg.run_status("run").num_steps_charged == 1
    assert running(pg) == replay(where(pg))


def test_a_killed_server_loses_no_acknowledged_charge(postgres, pg):
    epoch, attempt = start_run(pg, **LONG)
    acknowledged = []
    failed = []

    def work() -> None:
        try:
            acknowledged.extend(
                charge(pg, epoch, attempt, step) for step in range(20_000)
            )
        except LedgerError as error:
            failed.append(error)

    for kill in range(3):
        done = len(acknowledged)
        thread = threading.Thread(target=work)
        thread.start()
        while len(acknowledged) < done + 50 + 30 * kill and thread.is_alive():
            thread.join(0.005)
        postgres.kill()
        thread.join(60)
        with pytest.raises(LedgerUnreachableError):
            pg.position()
        postgres.start()
        state = replay(where(pg))
        assert state.sequence >= max(p.sequence for p in acknowledged)
        assert pg.run_status("run").num_steps_charged == (
            state.runs["run"].num_steps_charged
        )
        # The next attempt starts anew from what the ledger holds.
        epoch = pg.take_epoch("run")
        attempt = pg.open_attempt("run", epoch, 0, "coordinator-restart")
        assert verify(pg, epsilon=price_nothing).num_entries == pg.position().sequence
    assert len(failed) == 3
    assert all(isinstance(error, LedgerError) for error in failed)


def test_a_killed_client_loses_no_acknowledged_charge(postgres_place, pg):
    start_run(pg, **LONG)
    for kill in range(2):
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(CHARGE_UNTIL_KILLED),
                postgres_place,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        seen = b""
        while seen.count(b"\n") < 10 + 31 * kill:
            seen += os.read(child.stdout.fileno(), 1 << 16)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
        seen += child.stdout.read()
        child.stdout.close()
        found = pg.run_status("run").num_steps_charged
        assert int(seen.splitlines()[-1]) <= found <= int(seen.splitlines()[-1]) + 1


def test_a_stale_coordinator_cannot_append(postgres_place, pg):
    epoch, attempt = start_run(pg)
    with open_ledger(postgres_place) as other:
        other.take_epoch("run")
    with pytest.raises(StaleCoordinatorError):
        charge(pg, epoch, attempt, 0)


# -- servers that are refused ---------------------------------------------


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_can_lose_a_commit_is_refused(postgres, pg, setting):
    epoch, attempt = start_run(pg)
    postgres.set(setting, "off")
    try:
        with pytest.raises(LedgerStorageError, match=f"{setting} = off"):
            Ledger.open(where(pg))
        with pytest.raises(LedgerStorageError, match=f"{setting} = off"):
            charge(pg, epoch, attempt, 0)
    finally:
        postgres.set(setting, "on")
    assert pg.run_status("run").num_steps_charged == 0


def test_a_session_that_does_not_wait_for_the_disk_charges_nothing(pg):
    epoch, attempt = start_run(pg)
    pg._chain.store.execute("SET synchronous_commit = off")
    with pytest.raises(LedgerStorageError, match="synchronous_commit = off"):
        charge(pg, epoch, attempt, 0)


def test_a_server_that_defaults_to_asynchronous_commits_is_overruled(postgres, pg):
    url = f"{where(pg)}%20-csynchronous_commit%3Doff"
    with Ledger.open(url) as ledger:
        assert ledger._chain.store.fetch("SHOW synchronous_commit") == [("on",)]


def test_a_standby_can_be_verified_and_not_charged(postgres, pg):
    live_through(pg)
    rows = pg.position().sequence
    postgres.be_standby(True)
    try:
        with pytest.raises(LedgerStorageError, match="only reads"):
            Ledger.open(where(pg))
        assert verify(where(pg), epsilon=price_nothing).num_entries == rows
    finally:
        postgres.be_standby(False)
    assert pg.position().sequence == rows


def test_a_full_disk_is_named_and_charges_nothing(postgres, pg):
    """The server's own answer, made by a trigger, through the real driver."""
    epoch, attempt = start_run(pg)
    postgres.run(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON entries "
        "FOR EACH ROW EXECUTE FUNCTION full_disk()",
        url=where(pg),
    )
    with pytest.raises(LedgerStorageError, match="full") as caught:
        charge(pg, epoch, attempt, 0)
    assert caught.value.details == {"sqlstate": "53100"}
    assert running(pg) == replay(where(pg))


def test_unlogged_tables_newer_schemas_and_other_encodings_are_refused(postgres, pg):
    url = where(pg)
    postgres.run("ALTER TABLE entries SET UNLOGGED", url=url)
    with pytest.raises(LedgerStorageError, match="not written ahead"):
        Ledger.open(url)
    postgres.run(
        "ALTER TABLE entries SET LOGGED",
        "UPDATE meta SET value = '2' WHERE key = 'schema_version'",
        url=url,
    )
    with pytest.raises(LedgerFormatError, match="schema 2"):
        Ledger.open(url)
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(LedgerFormatError, match="LATIN1"):
        Ledger.open(url.replace("/postgres?", "/latin?"), create=True)


def test_an_empty_database_is_no_ledger_until_asked(postgres):
    url = postgres.new_schema()
    with pytest.raises(InputError, match="no ledger"):
        Ledger.open(url)
    with pytest.raises(InputError, match="no ledger"):
        verify(url)


# -- addresses and credentials --------------------------------------------


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("pft_ray.ledger.opening.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install pft-ray\[postgres\]"):
        Ledger.open("postgresql://host/db")


def test_an_unreachable_server_does_not_show_the_password(tmp_path):
    url = f"postgresql://someone:hunter2@/db?host={tmp_path}"
    with pytest.raises(LedgerUnreachableError) as caught:
        Ledger.open(url)
    shown = f"{caught.value} {caught.value.to_dict()!r} {caught.value!r}"
    assert "hunter2" not in shown
    assert "someone" not in shown


def test_location_is_the_shared_one(postgres_place):
    assert str(location(postgres_place)).startswith("postgresql://")
