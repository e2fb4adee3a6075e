"""Time limits by a monotonic clock: full, restarted with the watcher, race-free."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from pft_ray.errors import PftError, ReservationExpiredError
from pft_ray.ledger import ReservationClock
from tests.ledger.builders import (
    TRAIN,
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
    start_run,
    where,
)
from tests.ledger.replaying import replay, running

PLAN = make_plan(evaluation=None)


class FakeClock:
    """Seconds that a test sets."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return FakeClock()


def ask(ledger, run_id="a", epsilon=1.0, limit_s=60.0):
    envelopes = make_envelopes(PLAN, epsilon)
    return ledger.queue.request(run_id, PLAN, envelopes, time_limit_s=limit_s)


def test_a_limit_passes_in_full_and_not_before(ledger, clock):
    ask(ledger)
    watch = ReservationClock(ledger.queue, clock)
    assert watch.tick() == ()
    clock.now_s += 59.999
    assert watch.tick() == ()
    clock.now_s += 0.002
    assert watch.tick() == ("a",)
    assert watch.tick() == ()
    assert ledger.run_status("a").status == "expired"
    assert ledger.block_status(TRAIN).reserved_epsilon == 0
    assert replay(where(ledger)) == running(ledger)


def test_it_counts_from_when_the_reservation_was_first_seen(ledger, clock):
    watch = ReservationClock(ledger.queue, clock)
    watch.tick()
    clock.now_s += 1000
    ask(ledger)
    assert watch.tick() == ()
    clock.now_s += 59
    assert watch.tick() == ()


def test_a_new_watcher_starts_in_full(ledger, clock):
    ask(ledger)
    first = ReservationClock(ledger.queue, clock)
    first.tick()
    clock.now_s += 59
    second = ReservationClock(ledger.queue, clock)
    assert second.tick() == ()
    clock.now_s += 59
    assert second.tick() == ()
    assert first.tick() == ("a",)  # it watched for all of it


def test_a_coordinator_that_takes_the_run_starts_it_in_full(ledger, clock):
    ask(ledger)
    watch = ReservationClock(ledger.queue, clock)
    watch.tick()
    clock.now_s += 59
    ledger.take_epoch("a")
    assert watch.tick() == ()
    clock.now_s += 59
    assert watch.tick() == ()
    clock.now_s += 2
    assert watch.tick() == ("a",)


def test_while_a_run_waits_its_limit_does_not_run(ledger, clock):
    ask(ledger, "first", 3.0, limit_s=None)
    assert ask(ledger, "a", 1.0) == "waiting"
    watch = ReservationClock(ledger.queue, clock)
    watch.tick()
    clock.now_s += 1000
    assert watch.tick() == ()
    ledger.release_reservation("first")
    ledger.queue.admit()
    assert watch.tick() == ()
    clock.now_s += 60
    assert watch.tick() == ("a",)


def test_charged_runs_and_runs_without_a_limit_stay(ledger, clock):
    ask(ledger, "none", limit_s=None)
    ask(ledger, "charged")
    watch = ReservationClock(ledger.queue, clock)
    epoch = ledger.take_epoch("charged")
    watch.tick()
    attempt = ledger.open_attempt("charged", epoch, 0, "start")
    ledger.charge_steps("charged", epoch, attempt, 0, 1, nonce(0))
    clock.now_s += 10_000
    assert watch.tick() == ()
    assert ledger.block_status(TRAIN).reserved_epsilon == 2.0


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_wall_clock_that_jumps_changes_nothing(ledger, monkeypatch, jump_s):
    """With the clock that coordinators and waiting runs give it."""
    ask(ledger, limit_s=0.2)
    watch = ReservationClock(ledger.queue, time.monotonic)
    start = time.monotonic()
    assert watch.tick() == ()
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (wall() + jump_s)))
    found = ()
    while not found and time.monotonic() - start < 10:
        found = watch.tick()
        assert not found or time.monotonic() - start >= 0.2
        time.sleep(0.01)
    assert found == ("a",)


def _charge(folder, epoch, attempt, start, results):
    with open_ledger(folder) as ledger:
        start.wait()
        try:
            ledger.charge_steps("a", epoch, attempt, 0, 1, nonce(0))
            results.put("charged")
        except ReservationExpiredError:
            results.put("refused")


def _expire(folder, epoch, start, results):
    with open_ledger(folder) as ledger:
        start.wait()
        results.put("expired" if ledger.queue.expire("a", epoch) else "kept")


@pytest.mark.parametrize("again", range(4))
def test_first_grant_or_expiry_never_both(place, again):
    context = multiprocessing.get_context("fork")
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        ask(ledger)
        epoch = ledger.take_epoch("a")
        attempt = ledger.open_attempt("a", epoch, 0, "start")
    results, start = context.Queue(), context.Barrier(2)
    family = [
        context.Process(target=_charge, args=(place, epoch, attempt, start, results)),
        context.Process(target=_expire, args=(place, epoch, start, results)),
    ]
    for process in family if again % 2 else reversed(family):
        process.start()
    found = {results.get(timeout=60) for _ in family}
    for process in family:
        process.join(timeout=60)
    assert found in ({"charged", "kept"}, {"refused", "expired"})
    with open_ledger(place) as ledger:
        status, block = ledger.run_status("a"), ledger.block_status(TRAIN)
        won = "charged" in found
        assert status.num_steps_charged == (1 if won else 0)
        assert (status.status == "expired") == (not won)
        assert block.reserved_epsilon == block.used_epsilon == (1.0 if won else 0.0)


def _last(folder, run_id, how, start, results):
    with open_ledger(folder) as ledger:
        envelopes = make_envelopes(PLAN, 1.0)
        start.wait()
        try:
            if how == "reserve":
                ledger.reserve(run_id, PLAN, envelopes)
            else:
                ledger.queue.request(run_id, PLAN, envelopes)
                ledger.queue.admit()
        except PftError as error:
            results.put(error.code)
            return
        results.put(ledger.run_status(run_id).status)


@pytest.mark.parametrize("hows", [("request", "request"), ("reserve", "request")])
@pytest.mark.parametrize("again", range(3))
def test_two_processes_never_both_get_the_last_unit(place, hows, again):
    """Exactly one envelope is left; the two may come in either order."""
    context = multiprocessing.get_context("fork")
    with open_ledger(place) as ledger:
        add_blocks(ledger)
        start_run(ledger, "first", evaluation=None)
        start_run(ledger, "second", evaluation=None)
    results, start = context.Queue(), context.Barrier(2)
    family = [
        context.Process(target=_last, args=(place, str(n), how, start, results))
        for n, how in enumerate(hows)
    ]
    for process in family if again % 2 else reversed(family):
        process.start()
    found = sorted(results.get(timeout=60) for _ in family)
    for process in family:
        process.join(timeout=60)
    allowed = [["reserved", "waiting"]]
    if "reserve" in hows:
        allowed += [["budget-refused", "reserved"], ["must-wait", "reserved"]]
    assert found in allowed
    with open_ledger(place) as ledger:
        assert ledger.block_status(TRAIN).remaining_epsilon == 0
        assert [run.status for run in ledger.runs()].count("reserved") == 1
