"""A database that goes away and comes back: waited for, and charged at most once."""

from __future__ import annotations

import threading
import time

import pytest

from pft_ray.errors import (
    LedgerConnectionLostError,
    LedgerUnreachableError,
    StaleCoordinatorError,
)
from pft_ray.ledger import Ledger
from pft_ray.ledger.postgres import PostgresStore
from tests.ledger.builders import (
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
    start_run,
    where,
)
from tests.ledger.filter_builders import FILTER, add_filter_blocks, purpose
from tests.ledger.replaying import replay


@pytest.fixture
def url(postgres_place):
    with open_ledger(postgres_place) as ledger:
        add_blocks(ledger)
        return where(ledger)


@pytest.fixture
def patient(url):
    with Ledger.open(url, patience_s=20.0) as ledger:
        yield ledger


def kinds(url) -> list[str]:
    with Ledger.open(url) as ledger:
        return [entry.kind for entry in reversed(ledger.history(1 << 20))]


def test_every_append_outlives_a_killed_server(postgres, patient, url):
    """The server is killed before each append, and started while it waits."""
    before = len(kinds(url))
    acts = [
        lambda: start_run(patient),
        lambda: patient.charge_steps("run", 1, 1, 0, 1, nonce(0)),
        lambda: patient.record_checkpoint("run", 1, 1, 1, "step-1"),
        lambda: patient.end_run("run", 1, "interrupted", 1),
    ]
    for act in acts:
        postgres.kill()
        starter = threading.Timer(0.5, postgres.start)
        starter.start()
        act()
        starter.join()
    wanted = ["reserve", "epoch", "attempt", "grant", "checkpoint", "end"]
    assert kinds(url)[before:] == wanted
    assert replay(url).position == patient.position()


@pytest.fixture
def broken_commit(monkeypatch):
    """Lets the connection break in the next commit, before or after it is durable."""
    commit = PostgresStore._commit
    due: list[str] = []

    def breaking(store):
        when = due.pop() if due else "never"
        if when == "after":
            commit(store)
        if when != "never":
            store._drop()
            raise LedgerConnectionLostError("lost", "", {"outcome": "unknown"})
        commit(store)

    monkeypatch.setattr(PostgresStore, "_commit", breaking)
    return due


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_that_broke_off_is_made_once(patient, url, broken_commit, when):
    """Whether it was durable or not: one row, and the answer names it."""
    epoch, attempt = start_run(patient)
    acts = [
        lambda: patient.charge_steps("run", epoch, attempt, 0, 2, nonce(0)),
        lambda: patient.record_checkpoint("run", epoch, attempt, 2, "step-2"),
    ]
    for act in acts:
        before = patient.position().sequence
        broken_commit.append(when)
        assert act().sequence == before + 1 == patient.position().sequence
    broken_commit.append(when)
    assert patient.open_attempt("run", epoch, 2, "resume") == attempt + 1
    assert kinds(url)[-3:] == ["grant", "checkpoint", "attempt"]
    assert patient.run_status("run").num_steps_charged == 2


def test_two_coordinators_never_believe_in_one_epoch(url, patient, broken_commit):
    """Our row may be another's in the same words: the epoch is asked for anew."""
    start_run(patient)
    broken_commit.append("after")
    assert patient.take_epoch("run") == 3, "2 may be somebody else's"
    with pytest.raises(StaleCoordinatorError):
        patient.open_attempt("run", 2, 0, "start")


def test_patience_ends(postgres, url):
    with Ledger.open(url, patience_s=1.0) as ledger:
        postgres.kill()
        try:
            start = time.monotonic()
            with pytest.raises(LedgerUnreachableError):
                ledger.position()
            assert 0.5 < time.monotonic() - start < 15
            with pytest.raises(LedgerUnreachableError):
                Ledger.open(url)
        finally:
            postgres.start()
        assert ledger.position().sequence > 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_budget_is_taken_and_moved_once(patient, url, broken_commit, when):
    """Rows without a fencing epoch: their own random bits tell them from others."""
    add_filter_blocks(patient)
    before, held = kinds(url), purpose(patient, "tuning").rho_units
    broken_commit.append(when)
    patient.filters.move(FILTER, "training", "tuning", 1000)
    assert purpose(patient, "tuning").rho_units == held + 1000
    plan = make_plan()
    broken_commit.append(when)
    patient.reserve("direct", plan, make_envelopes(plan))
    broken_commit.append(when)
    assert patient.queue.request("asked", plan, make_envelopes(plan)) == "reserved"
    broken_commit.append(when)
    patient.release_reservation("direct")
    wanted = ["move", "reserve", "request", "admit", "release_reservation"]
    assert kinds(url) == before + wanted
    assert replay(url).position == patient.position()
