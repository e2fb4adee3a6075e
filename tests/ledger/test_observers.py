"""Who is told what: charges, thresholds, refusals, verification; and nothing else."""

from __future__ import annotations

import json
import stat
import threading

import pytest

from pft_ray.errors import BudgetError, BudgetExhausted, VerificationError
from pft_ray.ledger import BlockSpec, BudgetEvent, Observers, verify
from pft_ray.telemetry import EventFile
from tests.ledger.builders import (
    SPLIT,
    TRAIN,
    make_envelopes,
    make_plan,
    nonce,
    start_run,
)


@pytest.fixture
def told(ledger):
    events: list[BudgetEvent] = []
    ledger.observers.subscribe(events.append)
    return events


def kinds(events):
    return [event.kind for event in events]


def small_plan(**changes):
    return make_plan(evaluation=None, **changes)


def run_on(ledger, run_id, epsilon):
    """Reserves ``epsilon`` of the training block's 3 and charges a step of it."""
    plan = small_plan()
    ledger.reserve(run_id, plan, make_envelopes(plan, epsilon))
    epoch = ledger.take_epoch(run_id)
    attempt = ledger.open_attempt(run_id, epoch, 0, "start")
    ledger.charge_steps(run_id, epoch, attempt, 0, 1, nonce(1))


def test_each_charge_is_told_once_and_only_when_it_is_durable(ledger, told):
    seen = []
    ledger.observers.subscribe(
        lambda event: seen.append((event.sequence, ledger.position().sequence))
    )
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(1))  # asked again
    charged = [event for event in told if event.kind == "charged"]
    assert [(e.fields["start"], e.fields["stop"]) for e in charged] == [(0, 4)]
    assert charged[0].fields["charged"] == 4
    assert charged[0].fields["num_steps_max"] == 25
    assert all(0 < sequence <= position for sequence, position in seen)
    assert kinds(told)[:2] == ["reserved", "attempt_opened"]


def test_a_block_tells_each_threshold_once(ledger, told):
    def marks():
        return [
            event.fields["percent"]
            for event in told
            if event.kind == "spent" and event.fields["block"] == TRAIN
        ]

    run_on(ledger, "a", 1.49)
    assert marks() == []
    run_on(ledger, "b", 0.01)  # 1.50 of 3
    assert marks() == [50]
    run_on(ledger, "c", 1.35)  # 2.85 of 3
    assert marks() == [50, 80, 95]
    run_on(ledger, "d", 0.15)
    assert marks() == [50, 80, 95]


def test_a_reservation_alone_spends_nothing(ledger, told):
    plan = small_plan()
    ledger.reserve("run", plan, make_envelopes(plan, 3.0))
    assert kinds(told) == ["reserved"]
    ledger.release_reservation("run")
    assert kinds(told) == ["reserved", "returned"]


def test_refusals_and_exhaustion_are_told_and_wrote_nothing(ledger, told):
    plan = small_plan(fault_reserve=0)
    before = ledger.position()
    with pytest.raises(BudgetError):
        ledger.reserve("big", plan, make_envelopes(plan, 3.1))
    assert ledger.position() == before
    assert told[-1].kind == "refused"
    assert told[-1].fields["code"] == "budget-refused"
    assert told[-1].sequence == 0
    ledger.reserve("run", plan, make_envelopes(plan))
    epoch = ledger.take_epoch("run")
    attempt = ledger.open_attempt("run", epoch, 0, "start")
    for start in (0, 4, 8, 10, 14, 18):
        stop = {8: 10, 18: 20}.get(start, start + 4)
        ledger.charge_steps("run", epoch, attempt, start, stop, nonce(start))
    attempt = ledger.open_attempt("run", epoch, 16, "resume")
    with pytest.raises(BudgetExhausted):
        ledger.charge_steps("run", epoch, attempt, 16, 20, nonce(99))
    assert told[-1].kind == "exhausted"
    assert told[-1].fields["remaining_steps"] == 0


def test_what_is_no_refusal_is_not_told(ledger, told):
    with pytest.raises(ValueError, match="no data set"):
        ledger.create_block(BlockSpec("x", "unknown", SPLIT, "record", 1.0, 1e-6))
    assert told == []


def test_a_subscriber_that_raises_changes_nothing(ledger, told, caplog):
    def broken(event):
        raise RuntimeError("private words")

    ledger.observers.subscribe(broken)
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    assert ledger.run_status("run").num_steps_charged == 4
    assert "RuntimeError" in caplog.text
    assert "private words" not in caplog.text


def test_a_subscriber_that_left_is_told_no_more(ledger):
    events = []
    leave = ledger.observers.subscribe(events.append)
    start_run(ledger, "a")
    count = len(events)
    leave()
    leave()
    start_run(ledger, "b")
    assert len(events) == count > 0


def test_a_subscriber_may_wait_for_another_thread_that_asks_the_ledger(ledger):
    """Nobody is told under the ledger's lock."""
    answers = []

    def ask(_event):
        thread = threading.Thread(target=lambda: answers.append(ledger.position()))
        thread.start()
        thread.join(timeout=5)

    ledger.observers.subscribe(ask)
    start_run(ledger)
    assert len(answers) == 2


def test_verification_is_told_with_its_outcome(ledger, told):
    start_run(ledger)
    found = verify(ledger, [], epsilon=lambda *_: 0.5)
    assert told[-1].kind == "verified"
    assert told[-1].sequence == found.num_entries
    others = Observers()
    failures = []
    others.subscribe(failures.append)
    with pytest.raises(VerificationError):
        verify(ledger, [], epsilon=lambda *_: 99.0, observers=others)
    assert kinds(failures) == ["verification_failed"]
    assert failures[0].fields["run_id"] == "run"


def test_the_event_file_is_the_owners_alone_and_one_line_an_event(ledger, tmp_path):
    path = tmp_path / "new" / "events.jsonl"
    ledger.observers.subscribe(EventFile(path))
    start_run(ledger)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["reserved", "attempt_opened"]
    assert all(line["time"] > 0 and line["sequence"] > 0 for line in lines)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_events_hold_no_nonce_no_blind_no_commitment(ledger, told):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0xABCDEF))
    words = json.dumps([event.to_dict() for event in told])
    rows = [entry.body for entry in ledger.history(100)]
    secrets = {
        row[name]
        for row in rows
        for name in ("nonce", "blind", "commitment", "key_check")
        if name in row
    }
    assert secrets
    assert not any(secret in words for secret in secrets)
