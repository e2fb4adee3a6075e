"""A run's life: fencing, attempts, grants up to T_max, looks, checkpoints, the end."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pft_ray.errors import (
    AttemptClosedError,
    BudgetExhausted,
    GrantRefusedError,
    InputError,
    ResumeError,
    SettledError,
    StaleCoordinatorError,
)
from tests.ledger.builders import (
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
    start_run,
)


def test_a_stale_epoch_can_append_nothing(ledger):
    old, attempt = start_run(ledger)
    look = ledger.charge_look("run", old, "before")
    new = ledger.take_epoch("run")
    assert new == old + 1
    before = ledger.position()
    for call in (
        lambda: ledger.charge_steps("run", old, attempt, 0, 1, nonce(0)),
        lambda: ledger.open_attempt("run", old, 0, "again"),
        lambda: ledger.charge_look("run", old, "now"),
        lambda: ledger.store_release("run", old, look, {"counts": []}),
        lambda: ledger.record_checkpoint("run", old, attempt, 0, "c"),
        lambda: ledger.end_run("run", old, "completed", 0),
        lambda: ledger.charge_steps("run", new + 1, attempt, 0, 1, nonce(0)),
    ):
        with pytest.raises(StaleCoordinatorError):
            call()
    assert ledger.position() == before


def test_fencing_holds_for_one_run_only(ledger):
    epoch, attempt = start_run(ledger, "one")
    start_run(ledger, "two")
    ledger.take_epoch("two")
    ledger.charge_steps("one", epoch, attempt, 0, 1, nonce(0))


def test_an_epoch_ends_the_attempt(ledger):
    _, attempt = start_run(ledger)
    epoch = ledger.take_epoch("run")
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
    assert ledger.run_status("run").open_attempt is None


def test_attempts_are_numbered_and_end_each_other(ledger):
    epoch, first = start_run(ledger)
    second = ledger.open_attempt("run", epoch, 0, "void-step")
    assert (first, second) == (1, 2)
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, first, 0, 1, nonce(0))
    ledger.charge_steps("run", epoch, second, 0, 1, nonce(0))
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, 3, 1, 2, nonce(1))


def test_steps_are_granted_in_order_and_none_twice(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    for start, stop in ((0, 4), (3, 5), (0, 1), (3, 4)):
        with pytest.raises(GrantRefusedError, match="overlaps"):
            ledger.charge_steps("run", epoch, attempt, start, stop, nonce(9))
    ledger.charge_steps("run", epoch, attempt, 4, 8, nonce(1))
    assert ledger.run_status("run").num_steps_charged == 8
    assert ledger.run_status("run").next_step == 8


@pytest.mark.parametrize(
    ("start", "stop", "why"),
    [
        (0, 5, "grant size"),
        (8, 11, "two phases"),
        (9, 12, "two phases"),
        (18, 21, "planned steps"),
        (20, 21, "planned steps"),
        (5, 5, "not a range"),
        (6, 5, "not a range"),
    ],
)
def test_a_grant_lies_in_one_phase_and_is_short(ledger, start, stop, why):
    epoch, attempt = start_run(ledger)
    before = ledger.position()
    with pytest.raises(GrantRefusedError, match=why):
        ledger.charge_steps("run", epoch, attempt, start, stop, nonce(0))
    assert ledger.position() == before


def test_grants_may_touch_the_phase_boundary(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 6, 10, nonce(0))
    ledger.charge_steps("run", epoch, attempt, 10, 14, nonce(1))
    assert ledger.run_status("run").num_steps_charged == 8


def test_a_repeated_request_is_charged_once(ledger):
    epoch, attempt = start_run(ledger)
    first = ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    ledger.charge_steps("run", epoch, attempt, 4, 6, nonce(8))
    assert ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7)) == first
    assert ledger.run_status("run").num_steps_charged == 6


def test_a_nonce_belongs_to_one_request(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    with pytest.raises(GrantRefusedError, match="nonce"):
        ledger.charge_steps("run", epoch, attempt, 4, 8, nonce(7))


@pytest.mark.parametrize("bad", ["", "g" * 32, "A" * 32, "0" * 31, "0" * 33])
def test_a_nonce_is_sixteen_bytes_of_hex(ledger, bad):
    epoch, attempt = start_run(ledger)
    with pytest.raises(InputError):
        ledger.charge_steps("run", epoch, attempt, 0, 4, bad)


def test_an_old_nonce_after_a_restart_is_no_free_replay(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    epoch = ledger.take_epoch("run")
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    attempt = ledger.open_attempt("run", epoch, 0, "coordinator-restart")
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    assert ledger.run_status("run").num_steps_charged == 8


def test_nonces_of_an_ended_attempt_are_forgotten(ledger):
    """Memory does not grow with the attempts that are over."""
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(7))
    ledger.open_attempt("run", epoch, 4, "resize")
    run = ledger._chain._state.runs["run"]
    assert [len(known.grants) for known in run.attempts] == [0, 0]


def test_t_max_is_a_cap_over_all_attempts(ledger):
    epoch, attempt = start_run(ledger)  # T_max = 25
    for start in (0, 4, 10, 14):
        ledger.charge_steps("run", epoch, attempt, start, start + 4, nonce(start))
    attempt = ledger.open_attempt("run", epoch, 10, "void-step")
    ledger.charge_steps("run", epoch, attempt, 10, 14, nonce(50))
    ledger.charge_steps("run", epoch, attempt, 14, 18, nonce(51))
    before = ledger.position()
    with pytest.raises(BudgetExhausted) as caught:
        ledger.charge_steps("run", epoch, attempt, 18, 20, nonce(52))
    assert caught.value.exit_code == 3
    assert caught.value.details["remaining_steps"] == 1
    assert ledger.position() == before
    ledger.charge_steps("run", epoch, attempt, 18, 19, nonce(53))
    assert ledger.run_status("run").num_steps_charged == 25
    with pytest.raises(BudgetExhausted):
        ledger.charge_steps("run", epoch, attempt, 19, 20, nonce(54))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_sequence_of_requests_passes_t_max(data, tmp_path_factory):
    """Whatever is asked, noised steps stay within what the envelope pays for."""
    with open_ledger(tmp_path_factory.mktemp("cap")) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        granted = 0
        for number in range(30):
            if data.draw(st.integers(0, 9)) == 0:
                start = data.draw(st.integers(0, 20))
                attempt = ledger.open_attempt("run", epoch, start, "void-step")
            start = data.draw(st.integers(0, 20))
            stop = start + data.draw(st.integers(-1, 5))
            try:
                ledger.charge_steps("run", epoch, attempt, start, stop, nonce(number))
            except (GrantRefusedError, BudgetExhausted, InputError):
                continue
            granted += stop - start
        assert granted <= 25
        assert ledger.run_status("run").num_steps_charged == granted


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, -1, 2**63])
def test_integers_are_integers(ledger, bad):
    epoch, attempt = start_run(ledger)
    with pytest.raises(InputError):
        ledger.charge_steps("run", epoch, attempt, 0, bad, nonce(0))
    with pytest.raises(InputError):
        ledger.open_attempt("run", epoch, bad, "x")
    with pytest.raises(InputError):
        ledger.end_run("run", epoch, "completed", bad)


def test_looks_are_paid_before_and_counted(ledger):
    epoch, _ = start_run(ledger)
    assert [ledger.charge_look("run", epoch, f"step-{i}") for i in range(3)] == [
        0,
        1,
        2,
    ]
    with pytest.raises(BudgetExhausted):
        ledger.charge_look("run", epoch, "step-4")
    assert ledger.run_status("run").num_looks_charged == 3


def test_a_run_without_looks_has_none(ledger):
    epoch, _ = start_run(ledger, evaluation=None)
    with pytest.raises(InputError, match="no evaluation"):
        ledger.charge_look("run", epoch, "step-4")


def test_a_released_value_is_stored_once(ledger):
    epoch, _ = start_run(ledger)
    with pytest.raises(GrantRefusedError, match="not charged"):
        ledger.store_release("run", epoch, 0, {"counts": [1]})
    look = ledger.charge_look("run", epoch, "step-4")
    ledger.store_release("run", epoch, look, {"counts": [1]})
    with pytest.raises(GrantRefusedError, match="already"):
        ledger.store_release("run", epoch, look, {"counts": [2]})
    assert ledger.released("run") == {0: {"counts": [1]}}


def test_a_look_of_a_dead_coordinator_cannot_be_drawn_again(ledger):
    epoch, _ = start_run(ledger)
    look = ledger.charge_look("run", epoch, "step-4")
    epoch = ledger.take_epoch("run")
    with pytest.raises(GrantRefusedError, match="another coordinator"):
        ledger.store_release("run", epoch, look, {"counts": [1]})


@pytest.mark.parametrize(
    "values", [{"x": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}, {"x": b"1"}]
)
def test_a_released_value_is_plain_json(ledger, values):
    epoch, _ = start_run(ledger)
    look = ledger.charge_look("run", epoch, "step-4")
    before = ledger.position()
    with pytest.raises(InputError):
        ledger.store_release("run", epoch, look, values)
    assert ledger.position() == before


def test_a_checkpoint_lies_within_its_attempt(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    ledger.record_checkpoint("run", epoch, attempt, 4, "a")
    with pytest.raises(InputError):
        ledger.record_checkpoint("run", epoch, attempt, 5, "b")
    second = ledger.open_attempt("run", epoch, 4, "resize")
    with pytest.raises(InputError):
        ledger.record_checkpoint("run", epoch, second, 3, "c")
    with pytest.raises(InputError):
        ledger.record_checkpoint("run", epoch, second + 1, 4, "d")
    ledger.record_checkpoint("run", epoch, attempt, 2, "late")
    assert ledger.run_status("run").checkpoints == ["a", "late"]


@pytest.mark.parametrize("status", ["completed", "budget_exhausted"])
def test_some_ends_are_final(ledger, status):
    epoch, attempt = start_run(ledger)
    ledger.end_run("run", epoch, status, 0)
    assert ledger.run_status("run").is_final
    with pytest.raises(ResumeError):
        ledger.take_epoch("run")
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
    before = ledger.position()
    for again in (status, "interrupted"):
        with pytest.raises(SettledError):
            ledger.end_run("run", epoch, again, 0)
    assert ledger.position() == before


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_some_ends_can_be_resumed_and_keep_their_charge(ledger, status):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    ledger.end_run("run", epoch, status, 4)
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, attempt, 4, 8, nonce(1))
    epoch = ledger.take_epoch("run")
    attempt = ledger.open_attempt("run", epoch, 4, "resume")
    ledger.charge_steps("run", epoch, attempt, 4, 8, nonce(1))
    assert ledger.run_status("run").num_steps_charged == 8


def test_refuses_an_end_without_sense(ledger):
    epoch, attempt = start_run(ledger)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    with pytest.raises(InputError):
        ledger.end_run("run", epoch, "released", 0)
    with pytest.raises(InputError):
        ledger.end_run("run", epoch, "completed", 5)


def test_a_reserved_run_has_no_owner_yet(ledger):
    plan = make_plan()
    ledger.reserve("run", plan, make_envelopes(plan))
    with pytest.raises(AttemptClosedError):
        ledger.open_attempt("run", 0, 0, "start")


def test_history_can_be_narrowed(ledger):
    epoch, attempt = start_run(ledger, "one")
    ledger.charge_steps("one", epoch, attempt, 0, 4, nonce(0))
    start_run(ledger, "two", evaluation=None)
    assert [e.kind for e in ledger.history(2)] == ["attempt", "epoch"]
    assert [e.kind for e in ledger.history(run_id="one")] == [
        "grant",
        "attempt",
        "epoch",
        "reserve",
    ]
    by_block = ledger.history(block="mail-validation")
    assert {e.body.get("run_id") for e in by_block} == {"one", None}
    assert by_block[-1].kind == "block"
    assert "stop 4" in ledger.history(run_id="one")[0].summary()
    assert nonce(0) not in ledger.history(run_id="one")[0].summary()
    assert ledger.history(run_id="one", limit=1)[0].to_dict()["body"]["charged"] == 4
    with pytest.raises(InputError):
        ledger.history(run_id="three")
