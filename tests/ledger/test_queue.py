"""The waiting queue on a real ledger: admission, order, refusals, settling."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from pft_ray.errors import (
    BudgetError,
    InputError,
    MustWaitError,
    ReservationExpiredError,
    ResumeError,
    SettledError,
    UnknownRunError,
    VerificationError,
)
from pft_ray.ledger import BlockSpec, Ledger, verify
from pft_ray.ledger.entries import make_entry
from tests.ledger.builders import (
    SPLIT,
    TRAIN,
    VALIDATION,
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
    price_nothing,
    start_run,
    where,
)
from tests.ledger.replaying import replay, running

PLAN = make_plan(evaluation=None)
CHAT = "chat-train"


def ask(ledger: Ledger, run_id: str, epsilon: float, **options) -> str:
    block = options.pop("block", TRAIN)
    envelopes = make_envelopes(PLAN, epsilon, train=block)
    return ledger.queue.request(run_id, PLAN, envelopes, **options)


def reserve(ledger: Ledger, run_id: str, epsilon: float, block: str = TRAIN) -> None:
    ledger.reserve(run_id, PLAN, make_envelopes(PLAN, epsilon, train=block))


def add_chat(ledger: Ledger) -> None:
    ledger.create_block(
        BlockSpec(
            name=CHAT,
            dataset="mail",
            predicate={**SPLIT, "salt": "chat", "role": "train"},
            unit="record",
            epsilon=3.0,
            delta=1e-4,
        )
    )


def refused(
    ledger: Ledger, error: type[Exception], call, match: str | None = None
) -> Exception:
    """Makes a call that has to be refused and to leave the ledger as it was."""
    before = ledger.position()
    with pytest.raises(error, match=match) as found:
        call()
    assert ledger.position() == before
    assert replay(where(ledger)) == running(ledger)
    return found.value


def test_what_fits_is_reserved_at_once_and_what_does_not_waits(ledger):
    assert ask(ledger, "a", 2.0) == "reserved"
    assert ask(ledger, "b", 2.0) == "waiting"
    status = ledger.block_status(TRAIN)
    assert (status.reserved_epsilon, status.num_reservations) == (2.0, 1)
    assert status.num_waiting == 1
    (row,) = ledger.queue.waiting()
    assert (row.run_id, row.place, row.num_ahead) == ("b", 1, 0)
    assert row.dominant_share == pytest.approx(2 / 3)
    assert row.waits_for["block"] == TRAIN
    assert row.waits_for["part"] == "epsilon"
    assert row.waits_for["missing"] == 1.0
    error = refused(
        ledger,
        BudgetError,
        lambda: ledger._append("admit", lambda _: {"run_id": "b", "blind": "0" * 32}),
    )
    assert error.code == "budget-refused"  # the very check of a reservation
    ledger.release_reservation("a")
    assert ledger.run_status("b").status == "waiting"
    assert ledger.queue.admit() == ("b",)
    assert ledger.queue.admit() == ()
    assert ledger.run_status("b").status == "reserved"
    assert ledger.block_status(TRAIN).reserved_epsilon == 2.0
    assert replay(where(ledger)) == running(ledger)


def test_an_admission_is_a_reservation_like_any_other(ledger):
    """Number, root and blind bits; a run can be driven and verified."""
    reserve(ledger, "before", 1.0)
    ask(ledger, "run", 1.0)
    number, root = ledger.reservation_position("run")
    assert number == 2
    (entry,) = [e for e in ledger.history(run_id="run") if e.kind == "admit"]
    assert entry.hash == root
    (request,) = [e for e in ledger.history(run_id="run") if e.kind == "request"]
    assert request.body["blind"] != entry.body["blind"]
    epoch = ledger.take_epoch("run")
    attempt = ledger.open_attempt("run", epoch, 0, "start")
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    assert ledger.block_status(TRAIN).used_epsilon == 1.0
    found = verify(where(ledger), epsilon=price_nothing)
    assert [run.run_id for run in found.runs] == ["before", "run"]
    assert found.num_reservations == 2


def test_all_blocks_or_none(ledger):
    plan = make_plan()
    reserve(ledger, "a", 1.0)
    ledger.queue.request("b", plan, make_envelopes(plan, 2.5))
    assert ledger.run_status("b").status == "waiting"
    assert ledger.block_status(VALIDATION).reserved_epsilon == 0
    ledger.release_reservation("a")
    assert ledger.queue.admit() == ("b",)
    for name in (TRAIN, VALIDATION):
        assert ledger.block_status(name).reserved_epsilon == 2.5


def test_nobody_overtakes_on_a_shared_block(ledger):
    add_chat(ledger)
    ask(ledger, "a", 2.0)
    ask(ledger, "b", 2.0)
    error = refused(ledger, MustWaitError, lambda: reserve(ledger, "c", 0.5))
    assert error.details["num_waiting"] == 1
    assert error.code == "must-wait"
    assert "1 run waits" in error.message
    refused(ledger, MustWaitError, lambda: ask(ledger, "c", 0.5, wait=False))
    assert ask(ledger, "c", 0.5) == "waiting"
    reserve(ledger, "d", 1.0, CHAT)  # nobody waits there
    assert ask(ledger, "e", 1.0, block=CHAT) == "reserved"
    refused(
        ledger,
        MustWaitError,
        lambda: ledger._append("admit", lambda _: {"run_id": "c", "blind": "0" * 32}),
    )
    ledger.queue.leave("b")
    assert ledger.queue.admit() == ("c",)


def test_dpf_lets_the_smallest_dominant_share_go_first(ledger):
    assert ledger.queue.set_order("dpf", 2)
    assert not ledger.queue.set_order("dpf", 2)
    assert ask(ledger, "large", 2.4) == "waiting"  # half of 3 is unlocked
    assert ledger.queue.waiting()[0].waits_for["missing"] == pytest.approx(0.9)
    assert ask(ledger, "small", 0.9) == "reserved"
    assert ask(ledger, "middle", 2.2) == "waiting"
    assert [row.run_id for row in ledger.queue.waiting()] == ["middle", "large"]
    ledger.release_reservation("small")
    refused(
        ledger,
        MustWaitError,
        lambda: ledger._append(
            "admit", lambda _: {"run_id": "large", "blind": "0" * 32}
        ),
    )
    refused(ledger, MustWaitError, lambda: reserve(ledger, "between", 2.3))
    reserve(ledger, "tiny", 0.1)  # the smallest of all goes first
    assert ledger.queue.admit() == ("middle",)
    assert replay(where(ledger)) == running(ledger)


def test_dpf_keeps_a_direct_reservation_within_what_is_unlocked(ledger):
    ledger.queue.set_order("dpf", 10)
    error = refused(ledger, MustWaitError, lambda: reserve(ledger, "a", 1.0))
    assert error.details["waits_for_block"] == TRAIN
    reserve(ledger, "b", 0.3)  # its own arrival unlocks a tenth
    refused(ledger, MustWaitError, lambda: reserve(ledger, "c", 0.31))
    ledger.queue.set_order("fcfs")
    reserve(ledger, "c", 1.0)


def test_the_order_and_the_queue_outlive_the_process(place, ledger):
    ledger.queue.set_order("dpf", 3)
    ask(ledger, "a", 1.5)
    rows = ledger.queue.waiting()
    with open_ledger(place) as other:
        assert other.queue.order() == ledger.queue.order()
        assert other.queue.waiting() == rows
        other.queue.leave("a")
    assert ledger.queue.waiting() == []


def test_what_can_never_fit_is_refused_and_never_queued(ledger):
    error = refused(ledger, BudgetError, lambda: ask(ledger, "a", 3.1))
    assert error.code == "budget-refused"
    epoch, attempt = start_run(ledger, "used", evaluation=None)
    ask(ledger, "waits", 2.5)
    ledger.charge_steps("used", epoch, attempt, 0, 1, nonce(0))
    refused(ledger, BudgetError, lambda: ask(ledger, "b", 2.1))
    # What became impossible while it waited holds nobody up, and can be told.
    assert not ledger.queue.waiting()[0].is_possible
    refused(ledger, BudgetError, lambda: ledger.queue.check_possible("waits"))
    assert ask(ledger, "b", 2.0) == "reserved"


def test_a_run_that_waits_cannot_run_and_holds_nothing(ledger):
    ask(ledger, "a", 3.0)
    ask(ledger, "b", 1.0)
    refused(ledger, ResumeError, lambda: ledger.take_epoch("b"), "waits")
    refused(ledger, InputError, lambda: ledger.release_reservation("b"), "leave")
    refused(ledger, InputError, lambda: ledger.reservation_position("b"))
    refused(ledger, InputError, lambda: reserve(ledger, "b", 0.1), "has a reservation")
    found = verify(where(ledger), epsilon=price_nothing)
    assert [run.run_id for run in found.runs] == ["a"]


def test_who_left_is_gone(ledger):
    ask(ledger, "a", 3.0)
    ask(ledger, "b", 1.0)
    ledger.queue.leave("b")
    assert ledger.run_status("b").status == "left"
    assert ledger.run_status("b").is_final
    refused(ledger, SettledError, lambda: ledger.queue.leave("b"))
    refused(ledger, SettledError, lambda: ledger.queue.leave("a"))
    refused(ledger, UnknownRunError, lambda: ledger.queue.leave("nobody"))
    refused(ledger, ResumeError, lambda: ledger.take_epoch("b"))
    refused(ledger, SettledError, lambda: ledger.release_reservation("b"))


def test_giving_up_works_before_and_after_admission(ledger):
    ask(ledger, "a", 3.0)
    ask(ledger, "b", 3.0)
    ledger.queue.give_up("b")
    ledger.queue.give_up("a")
    ledger.queue.give_up("a")
    ledger.queue.give_up("nobody")
    assert ledger.block_status(TRAIN).reserved_epsilon == 0
    statuses = {run.run_id: run.status for run in ledger.runs()}
    assert statuses == {"a": "released", "b": "left"}


# -- settling ------------------------------------------------------------------------


def test_nothing_is_settled_twice(ledger):
    reserve(ledger, "a", 1.0)
    ledger.release_reservation("a")
    error = refused(ledger, SettledError, lambda: ledger.release_reservation("a"))
    assert (error.code, error.exit_code) == ("already-settled", 2)
    error = refused(
        ledger, UnknownRunError, lambda: ledger.release_reservation("nobody")
    )
    assert (error.code, error.exit_code) == ("unknown-run", 2)
    ask(ledger, "b", 1.0, time_limit_s=5)
    assert ledger.queue.expire("b", 0)
    assert not ledger.queue.expire("b", 0)
    error = refused(ledger, ReservationExpiredError, lambda: ledger.take_epoch("b"))
    assert (error.code, error.exit_code) == ("reservation-expired", 3)
    refused(ledger, SettledError, lambda: ledger.release_reservation("b"))
    refused(
        ledger,
        SettledError,
        lambda: ledger._append("expire", lambda _: {"run_id": "b"}),
    )


@pytest.mark.parametrize(
    "limit", [0, -1, float("nan"), float("inf"), True, False, "5", 1e12]
)
def test_time_limits_without_sense_are_refused(ledger, limit):
    refused(ledger, InputError, lambda: ask(ledger, "a", 1.0, time_limit_s=limit))


def test_a_time_limit_is_rounded_up_to_milliseconds(ledger):
    ask(ledger, "a", 0.5, time_limit_s=1e-9)
    ask(ledger, "b", 0.5, time_limit_s=1.0001)
    assert ledger.queue.limited() == {("a", 0): 0.001, ("b", 0): 1.001}
    assert ledger.run_status("b").time_limit_s == 1.001


def test_only_what_was_not_charged_expires(ledger):
    ask(ledger, "a", 1.0, time_limit_s=5)
    epoch = ledger.take_epoch("a")
    attempt = ledger.open_attempt("a", epoch, 0, "start")
    ledger.charge_steps("a", epoch, attempt, 0, 1, nonce(0))
    assert ledger.queue.limited() == {}
    assert not ledger.queue.expire("a", epoch)
    refused(
        ledger,
        BudgetError,
        lambda: ledger._append("expire", lambda _: {"run_id": "a"}),
        "charged",
    )
    reserve(ledger, "no-limit", 1.0)
    assert not ledger.queue.expire("no-limit", 0)
    refused(
        ledger,
        InputError,
        lambda: ledger._append("expire", lambda _: {"run_id": "no-limit"}),
    )


def test_an_expired_run_gets_no_grant_even_if_it_lives(ledger):
    ask(ledger, "a", 3.0, time_limit_s=5)
    epoch = ledger.take_epoch("a")
    attempt = ledger.open_attempt("a", epoch, 0, "start")
    assert not ledger.queue.expire("a", epoch - 1)  # the limit began anew
    assert ledger.queue.expire("a", epoch)
    assert ledger.block_status(TRAIN).reserved_epsilon == 0
    for call in (
        lambda: ledger.charge_steps("a", epoch, attempt, 0, 1, nonce(0)),
        lambda: ledger.charge_look("a", epoch, "now"),
        lambda: ledger.take_epoch("a"),
        lambda: ledger.end_run("a", epoch, "failed", 0),
    ):
        refused(ledger, ReservationExpiredError, call)
    reserve(ledger, "next", 3.0)


@pytest.mark.parametrize("order", [("lifo", 0), ("dpf", 0), ("fcfs", 1), ("dpf", 1.5)])
def test_orders_without_sense_are_refused(ledger, order):
    refused(ledger, InputError, lambda: ledger.queue.set_order(*order))


# -- replay ----------------------------------------------------------------------------


def forge(path, kind: str, body: dict) -> int:
    """Appends a well-formed row that the rules never saw; returns its number."""
    entry = make_entry(replay(path).position, kind, body)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (entry.sequence, entry.kind, entry.text, entry.previous, entry.hash),
        )
    return entry.sequence


BLIND = {"blind": "0" * 32}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("admit", {"run_id": "c", **BLIND}),  # b waits before it
        ("admit", {"run_id": "b", **BLIND}),  # does not fit
        ("admit", {"run_id": "a", **BLIND}),  # has it
        ("admit", {"run_id": "nobody", **BLIND}),
        ("leave", {"run_id": "a"}),
        ("expire", {"run_id": "a"}),  # charged
        ("expire", {"run_id": "b"}),  # waits
        ("admission", {"order": "lifo", "dpf_n": 0}),
        ("admission", {"order": "dpf", "dpf_n": 0}),
        ("admission", {"order": "fcfs", "dpf_n": 0}),  # as before
        ("release_reservation", {"run_id": "b"}),
        ("epoch", {"run_id": "b", "epoch": 1}),
    ],
)
def test_a_row_out_of_turn_does_not_verify(tmp_path, kind, body):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        ask(ledger, "a", 2.0, time_limit_s=60)
        epoch = ledger.take_epoch("a")
        attempt = ledger.open_attempt("a", epoch, 0, "start")
        ledger.charge_steps("a", epoch, attempt, 0, 1, nonce(0))
        ask(ledger, "big", 1.0)
        ask(ledger, "b", 1.0)
        ask(ledger, "c", 0.5)
        path = ledger.path
    verify(path, epsilon=price_nothing)
    row = forge(path, kind, body)
    with pytest.raises(VerificationError, match=f"row {row} breaks a rule"):
        verify(path, epsilon=price_nothing)


def test_a_forged_row_in_turn_does_verify(tmp_path):
    """The forger itself is sound: it is the rules that refuse the rows above."""
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        ask(ledger, "a", 3.0)
        ask(ledger, "b", 1.0)
        ledger.release_reservation("a")
        path = ledger.path
    forge(path, "admit", {"run_id": "b", **BLIND})
    verify(path, epsilon=price_nothing)
    assert replay(path).runs["b"].status == "reserved"
