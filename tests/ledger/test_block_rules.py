"""Blocks and reservations: all or nothing, never more than the block holds."""

from __future__ import annotations

import pytest

from pft_ray.accounting.events import Repeat
from pft_ray.accounting.plan import Phase
from pft_ray.errors import (
    AttemptClosedError,
    BudgetError,
    InputError,
    ResumeError,
    UnknownBlockError,
)
from pft_ray.ledger import BlockSpec, Envelope
from tests.ledger.builders import (
    SPLIT,
    TRAIN,
    VALIDATION,
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
    start_run,
)


def spec(**changes):
    fields = {
        "name": "block",
        "dataset": "mail",
        "predicate": {"kind": "all"},
        "unit": "record",
        "epsilon": 1.0,
        "delta": 1e-5,
    }
    return BlockSpec(**{**fields, **changes})


def test_ten_envelopes_fit_and_the_eleventh_is_refused(ledger):
    plan = make_plan(evaluation=None)
    ledger.create_block(spec(name="ten", epsilon=3.0, delta=1e-4))
    for number in range(10):
        ledger.reserve(f"run-{number}", plan, make_envelopes(plan, 0.3, train="ten"))
    status = ledger.block_status("ten")
    assert (status.remaining_epsilon, status.remaining_delta) == (0.0, 0.0)
    before = ledger.position()
    with pytest.raises(BudgetError) as caught:
        ledger.reserve("run-10", plan, make_envelopes(plan, 0.3, train="ten"))
    assert caught.value.exit_code == 3
    assert caught.value.details == {
        "block": "ten",
        "remaining_epsilon": 0.0,
        "remaining_delta": 0.0,
        "asked_epsilon": 0.3,
        "asked_delta": 1e-5,
    }
    assert ledger.position() == before
    assert [run.run_id for run in ledger.runs()] == [f"run-{i}" for i in range(10)]


def test_one_unit_too_much_is_refused(ledger):
    plan = make_plan(evaluation=None)
    with pytest.raises(BudgetError):
        ledger.reserve("run", plan, make_envelopes(plan, 3.000000001))
    ledger.reserve("run", plan, make_envelopes(plan, 3.0))


def test_delta_alone_can_refuse(ledger):
    plan = make_plan(evaluation=None, delta=1e-4)
    ledger.create_block(spec(name="small", epsilon=100.0, delta=9.99e-5))
    with pytest.raises(BudgetError):
        ledger.reserve("run", plan, make_envelopes(plan, 1.0, train="small"))


def test_all_blocks_or_none(ledger):
    plan = make_plan()
    ledger.create_block(spec(name="poor", epsilon=0.5, delta=1e-4))
    envelopes = make_envelopes(plan, 1.0, validation="poor")
    with pytest.raises(BudgetError) as caught:
        ledger.reserve("run", plan, envelopes)
    assert caught.value.details["block"] == "poor"
    assert ledger.block_status(TRAIN).reserved_epsilon == 0
    assert ledger.runs() == []


def test_two_envelopes_of_one_block_are_summed(ledger):
    plan = make_plan()
    envelopes = make_envelopes(plan, 1.6, validation=TRAIN)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve("run", plan, envelopes)
    assert caught.value.details["asked_epsilon"] == 3.2


def test_check_reservation_reserves_nothing(ledger):
    plan = make_plan()
    before = ledger.position()
    ledger.check_reservation(plan, make_envelopes(plan))
    with pytest.raises(BudgetError):
        ledger.check_reservation(plan, make_envelopes(plan, 3.1))
    assert ledger.position() == before
    assert ledger.runs() == []


def test_an_envelope_pays_for_the_plans_own_event(ledger):
    plan = make_plan()
    cheap = Repeat(plan.step_event, plan.num_steps)  # without the fault reserve
    with pytest.raises(InputError, match="another event"):
        ledger.reserve(
            "run", plan, [Envelope.priced(TRAIN, "training", 1.0, 1e-5, cheap)]
        )


def test_an_envelope_holds_the_plans_delta(ledger):
    plan = make_plan(evaluation=None)
    with pytest.raises(InputError, match="less delta"):
        ledger.reserve(
            "run", plan, [Envelope.priced(TRAIN, "training", 1.0, 9e-6, plan.event)]
        )


def test_needs_exactly_the_envelopes_of_the_plan(ledger):
    plan = make_plan()
    train, look = make_envelopes(plan)
    without = make_plan(evaluation=None)
    for case, envelopes in (
        (plan, []),
        (plan, [look]),
        (plan, [train, train]),
        (plan, [train, look, look]),
        (
            plan,
            [train, look, Envelope.priced(TRAIN, "evaluation", 1, 1e-5, look.event)],
        ),
        (without, [train, look]),
    ):
        with pytest.raises(InputError):
            ledger.reserve("run", case, envelopes)
    assert ledger.runs() == []


def test_unknown_names_are_refused_with_their_name(ledger):
    plan = make_plan(evaluation=None)
    with pytest.raises(UnknownBlockError, match="nowhere"):
        ledger.reserve("run", plan, make_envelopes(plan, train="nowhere"))
    with pytest.raises(UnknownBlockError, match="nowhere"):
        ledger.create_block(spec(dataset="nowhere"))
    with pytest.raises(UnknownBlockError, match="nowhere"):
        ledger.block_status("nowhere")
    with pytest.raises(UnknownBlockError, match="nowhere"):
        ledger.dataset("nowhere")
    with pytest.raises(InputError, match="nowhere"):
        ledger.run_status("nowhere")


def test_the_units_of_plan_and_block_agree(ledger):
    plan = make_plan(evaluation=None)
    ledger.create_block(spec(name="users", unit="user"))
    with pytest.raises(InputError, match="unit"):
        ledger.reserve("run", plan, make_envelopes(plan, train="users"))


def test_a_run_id_is_used_once(ledger):
    plan = make_plan(evaluation=None)
    ledger.reserve("run", plan, make_envelopes(plan, 0.1))
    with pytest.raises(InputError, match="reservation already"):
        ledger.reserve("run", plan, make_envelopes(plan, 0.1))


@pytest.mark.parametrize("run_id", ["", " x", "x\n", "x" * 201, 5, "a\x00b"])
def test_run_ids_can_be_printed(ledger, run_id):
    plan = make_plan(evaluation=None)
    with pytest.raises(InputError):
        ledger.reserve(run_id, plan, make_envelopes(plan))


def test_creating_a_block_twice_changes_nothing(ledger):
    assert ledger.create_block(spec()) is True
    before = ledger.position()
    assert ledger.create_block(spec()) is False
    assert ledger.position() == before
    for change in (
        {"epsilon": 2.0},
        {"delta": 2e-5},
        {"unit": "user"},
        {"predicate": {"kind": "all", "x": 1}},
    ):
        with pytest.raises(InputError, match="another definition"):
            ledger.create_block(spec(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"predicate": {}},
        {"predicate": {"kind": 3}},
        {"predicate": {"kind": "all", "fraction": float("nan")}},
        {"unit": "owner"},
        {"epsilon": float("nan")},
        {"delta": 0},
        {"name": ""},
    ],
)
def test_refuses_a_block_without_sense(ledger, change):
    before = ledger.position()
    with pytest.raises(InputError):
        ledger.create_block(spec(**change))
    assert ledger.position() == before


def test_only_the_roles_of_one_split_are_disjoint(ledger):
    split = {"kind": "hash-split", "salt": "s", "validation_fraction": 0.2}
    assert ledger.block_status(TRAIN).overlapping == ()
    ledger.create_block(spec(name="again", predicate={**split, "role": "train"}))
    ledger.create_block(
        spec(name="salted", predicate={**split, "salt": "t", "role": "validation"})
    )
    ledger.create_block(
        spec(name="users", unit="user", predicate={**split, "role": "validation"})
    )
    overlapping = set(ledger.block_status(TRAIN).overlapping)
    assert overlapping == {"again", "salted", "users"}
    assert VALIDATION not in overlapping
    assert set(ledger.block_status("again").overlapping) == {TRAIN, "salted", "users"}


def test_blocks_of_two_registrations_are_summed(ledger):
    from tests.ledger.builders import fingerprints

    ledger.register_dataset(
        "chat", public=False, namespaces={"record": fingerprints(900, 5)}, facts={}
    )
    ledger.create_block(
        spec(name="chat", dataset="chat", predicate={**SPLIT, "role": "validation"})
    )
    assert set(ledger.block_status("chat").overlapping) == {TRAIN, VALIDATION}


def test_a_reservation_returns_until_the_first_charge(ledger):
    plan = make_plan()
    ledger.reserve("run", plan, make_envelopes(plan, 2.0))
    ledger.release_reservation("run")
    status = ledger.block_status(TRAIN)
    assert (status.reserved_epsilon, status.num_reservations) == (0.0, 0)
    with pytest.raises(InputError):
        ledger.release_reservation("run")
    with pytest.raises(ResumeError):
        ledger.take_epoch("run")
    ledger.reserve("next", plan, make_envelopes(plan, 3.0))


def test_a_released_run_gets_no_grant_even_if_it_lives(ledger):
    epoch, attempt = start_run(ledger)
    ledger.release_reservation("run")
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
    with pytest.raises(AttemptClosedError):
        ledger.charge_look("run", epoch, "now")


@pytest.mark.parametrize("kind", ["steps", "look"])
def test_a_charged_run_keeps_its_whole_envelopes(ledger, kind):
    epoch, attempt = start_run(ledger)
    assert ledger.block_status(TRAIN).used_epsilon == 0
    if kind == "steps":
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
    else:
        ledger.charge_look("run", epoch, "now")
    for name in (TRAIN, VALIDATION):
        status = ledger.block_status(name)
        assert status.used_epsilon == status.reserved_epsilon == 1.0
        assert status.used_delta == status.reserved_delta == 1e-5
    ledger.charge_steps("run", epoch, attempt, 1, 2, nonce(1))
    assert ledger.block_status(TRAIN).used_epsilon == 1.0
    with pytest.raises(BudgetError, match="charged"):
        ledger.release_reservation("run")


def test_a_report_sees_the_number_of_reservations_only(ledger):
    epoch, attempt = start_run(ledger, "first")
    for step in range(5):
        ledger.charge_steps("first", epoch, attempt, step, step + 1, nonce(step))
    plan = make_plan()
    written = ledger.reserve("second", plan, make_envelopes(plan, 0.5))
    shown = ledger.reservation_position("second")
    assert shown.sequence == 2
    assert shown.root == written.root
    assert written.sequence > 2
    assert ledger.reservation_position("first").sequence == 1


def test_roots_cannot_be_guessed(ledger):
    """Roots are shown outside: nobody can check a guess of the rows against them."""
    plan = make_plan()
    blinds = set()
    for run_id in ("a", "b"):
        ledger.reserve(run_id, plan, make_envelopes(plan))
        blinds.add(bytes.fromhex(ledger.history(1)[0].body["blind"]))
    assert {len(blind) for blind in blinds} == {16}
    assert len(blinds) == 2


def test_only_public_data_can_be_used_without_a_guarantee(ledger, tmp_path):
    with pytest.raises(InputError, match="private data"):
        ledger.mark_non_private("mail", "run")
    with open_ledger(tmp_path / "public") as public:
        add_blocks(public, public=True)
        public.mark_non_private("mail", "run", block=TRAIN)
        public.mark_non_private("mail", "run")
        status = public.block_status(TRAIN)
        assert status.num_non_private == 1
        assert status.reserved_epsilon == 0
        with pytest.raises(UnknownBlockError):
            public.mark_non_private("mail", "run", block="nowhere")


def test_statuses_are_copies(ledger):
    epoch, _ = start_run(ledger)
    look = ledger.charge_look("run", epoch, "now")
    ledger.store_release("run", epoch, look, {"counts": [1]})
    ledger.block_status(TRAIN).predicate["role"] = "validation"
    ledger.dataset("mail").facts["n"] = 10**9
    ledger.released("run")[0]["counts"].append(2)
    assert ledger.block_status(TRAIN).predicate["role"] == "train"
    assert ledger.dataset("mail").facts == {"n": 9}
    assert ledger.released("run") == {0: {"counts": [1]}}


def test_a_plan_is_kept_as_it_was(ledger):
    plan = make_plan(
        phases=(Phase("only", 7, "adapter+head", 0.25),), job_digest="ab" * 32
    )
    ledger.reserve("run", plan, make_envelopes(plan), name="mail model")
    status = ledger.run_status("run")
    assert status.plan == plan
    assert status.plan_digest == plan.digest
    assert status.name == "mail model"
    assert (status.num_steps, status.num_steps_max) == (7, 12)
    assert [e.purpose for e in status.envelopes] == ["training", "evaluation"]
