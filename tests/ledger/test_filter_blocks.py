"""Filter blocks: creation, purposes, moves, shares, charges, settlement."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from pft_ray.accounting.events import Gaussian, Repeat
from pft_ray.accounting.filters import UNITS, budget_units, rho_units
from pft_ray.accounting.plan import UserLevel
from pft_ray.errors import (
    AttemptClosedError,
    BlockModeError,
    BudgetError,
    InputError,
    PlanError,
    SettledError,
    UnknownBlockError,
    UnknownPurposeError,
)
from pft_ray.ledger import RhoShare
from tests.ledger.builders import (
    TRAIN,
    location,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
)
from tests.ledger.filter_builders import (
    FILTER,
    LOOKS,
    ORDER,
    add_filter_blocks,
    filter_spec,
    make_epochs,
    make_shares,
    purpose,
    start_filter_run,
)
from tests.ledger.replaying import replay, running

PLAN = make_plan()
STEP = rho_units(PLAN.step_event, ORDER)
LOOK = rho_units(PLAN.evaluation.look_event, ORDER)


@pytest.fixture
def filtered(ledger):
    """A ledger with two filter blocks beside its two plan blocks."""
    add_filter_blocks(ledger)
    return ledger


def units(ledger, name="training", block=FILTER):
    """(allotted, reserved, spent) of a purpose."""
    found = purpose(ledger, name, block)
    return found.rho_units, found.reserved_rho_units, found.spent_rho_units


def refuses(ledger, error, call, **details):
    """The call is refused and the ledger stays as it was."""
    before, state = ledger.position(), repr(running(ledger))
    with pytest.raises(error) as caught:
        call()
    assert ledger.position() == before
    assert repr(running(ledger)) == state
    for name, value in details.items():
        assert caught.value.details[name] == value
    return caught.value


def test_rho_is_what_epsilon_buys_at_the_order(filtered):
    status = filtered.block_status(FILTER)
    # Canonne, Kamath and Steinke 2020, proposition 12, solved for the divergence.
    rho = 30 - math.log1p(-1 / 4) + math.log(1e-5 * 4) / 3
    assert status.filter.rho == pytest.approx(rho, abs=1e-9)
    assert status.filter.rho_units <= rho * UNITS
    assert status.mode == "filter"
    assert (status.epsilon, status.delta) == (30.0, 1e-5)
    parts = {p.name: p.rho_units for p in status.filter.purposes}
    whole = status.filter.rho_units
    assert sum(parts.values()) == whole
    assert parts["training"] == math.floor(whole * Fraction(6, 10))
    assert parts["unassigned"] == whole - parts["training"] - parts["tuning"]


def test_creating_twice_is_a_no_op_and_another_definition_is_refused(filtered):
    before = filtered.position()
    assert filtered.filters.create(filter_spec()) is False
    filtered.filters.move(FILTER, "training", "tuning", 5)
    assert filtered.filters.create(filter_spec()) is False
    assert filtered.position().sequence == before.sequence + 1
    for change in ({"order": 9}, {"epsilon": 29.0}, {"purposes": {"training": 0.5}}):
        refuses(
            filtered,
            InputError,
            lambda change=change: filtered.filters.create(filter_spec(**change)),
        )
    refuses(
        filtered, InputError, lambda: filtered.filters.create(filter_spec(name=TRAIN))
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"order": 1}, InputError),
        ({"order": 2.5}, PlanError),
        ({"order": 2000}, InputError),
        ({"order": True}, PlanError),
        ({"order": 2, "epsilon": 0.1}, BudgetError),
        ({"epsilon": math.nan}, InputError),
        ({"epsilon": math.inf}, InputError),
        ({"epsilon": -1.0}, InputError),
        ({"epsilon": 0.0}, InputError),
        ({"delta": 1.0}, InputError),
        ({"purposes": {"training": 0.7, "tuning": 0.4}}, InputError),
        ({"purposes": {"training": 0.0}}, InputError),
        ({"purposes": {"training": -0.5}}, InputError),
        ({"purposes": {"training": math.nan}}, InputError),
        ({"purposes": {"training": 1e-40}}, InputError),
        ({"purposes": {"unassigned": 0.5}}, InputError),
        ({"purposes": {"Training": 0.5}}, InputError),
        ({"purposes": {"training//x": 0.5}}, InputError),
        ({"unit": "owner"}, InputError),
        ({"dataset": "none"}, UnknownBlockError),
    ],
)
def test_bad_definitions_change_nothing(ledger, change, error):
    refuses(ledger, error, lambda: ledger.filters.create(filter_spec(**change)))


def test_a_run_pays_the_events_at_the_order(filtered):
    filtered.reserve("run", PLAN, make_shares(PLAN))
    assert units(filtered)[1:] == (25 * STEP, 0)
    assert units(filtered, "evaluation", LOOKS)[1:] == (3 * LOOK, 0)
    # Two discrete Gaussians of sigma 10 a look: order / (2 sigma^2) each.
    assert pytest.approx(2 * ORDER / 200, rel=1e-11) == LOOK / UNITS


def test_steps_and_looks_are_charged_one_by_one(filtered):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))  # the same again
    filtered.charge_steps("run", epoch, attempt, 4, 7, nonce(2))
    assert units(filtered)[1:] == (18 * STEP, 7 * STEP)
    filtered.charge_look("run", epoch, "step-10")
    assert units(filtered, "evaluation", LOOKS)[1:] == (2 * LOOK, LOOK)
    status = filtered.block_status(FILTER).filter
    assert status.spent_fraction == pytest.approx(7 * STEP / status.rho_units)


@pytest.mark.parametrize("status", ["completed", "budget_exhausted"])
def test_a_final_end_returns_what_was_not_charged(filtered, status):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.end_run("run", epoch, status, 4)
    assert units(filtered)[1:] == (0, 4 * STEP)
    assert units(filtered, "evaluation", LOOKS)[1:] == (0, 0)
    error = refuses(filtered, SettledError, lambda: filtered.release_reservation("run"))
    assert (error.code, error.exit_code) == ("already-settled", 2)
    refuses(
        filtered,
        SettledError,
        lambda: filtered.end_run("run", epoch, "completed", 4),
    )


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_may_go_on_keeps_its_reservation(filtered, status):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.end_run("run", epoch, status, 4)
    assert units(filtered)[1:] == (21 * STEP, 4 * STEP)
    epoch = filtered.take_epoch("run")
    attempt = filtered.open_attempt("run", epoch, 0, "resume")
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    assert units(filtered)[1:] == (17 * STEP, 8 * STEP)


def test_a_release_before_any_charge_returns_all_and_only_once(filtered):
    start_filter_run(filtered)
    filtered.release_reservation("run")
    assert units(filtered)[1:] == (0, 0)
    assert filtered.run_status("run").status == "released"
    refuses(filtered, SettledError, lambda: filtered.release_reservation("run"))


def test_a_release_after_a_charge_settles_and_stops_the_run(filtered):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.release_reservation("run")
    assert units(filtered)[1:] == (0, 4 * STEP)
    assert filtered.run_status("run").status == "settled"
    refuses(
        filtered,
        AttemptClosedError,
        lambda: filtered.charge_steps("run", epoch, attempt, 4, 8, nonce(2)),
    )
    refuses(filtered, SettledError, lambda: filtered.release_reservation("run"))


def test_returned_rho_can_be_reserved_again_and_spent_rho_cannot(filtered):
    free = purpose(filtered).rho_units
    number = free // (25 * STEP)
    plan = make_plan(evaluation=None)
    for i in range(number):
        filtered.reserve(f"run-{i}", plan, make_shares(plan))
    error = refuses(
        filtered,
        BudgetError,
        lambda: filtered.reserve("more", plan, make_shares(plan)),
        block=FILTER,
        purpose="training",
        asked_rho_units=25 * STEP,
        remaining_rho_units=free - number * 25 * STEP,
    )
    assert error.exit_code == 3
    epoch = filtered.take_epoch("run-0")
    attempt = filtered.open_attempt("run-0", epoch, 0, "start")
    filtered.charge_steps("run-0", epoch, attempt, 0, 1, nonce(1))
    filtered.end_run("run-0", epoch, "completed", 1)
    left = purpose(filtered).remaining_rho_units
    assert left == free - (number - 1) * 25 * STEP - STEP


def test_epochs_are_charged_in_their_order(filtered):
    plan = make_plan(evaluation=None)
    for number, part in ((1, 10), (2, 15)):
        filtered.filters.move(
            FILTER, "training", f"training/epoch-{number}", part * STEP
        )
    filtered.reserve("run", plan, make_epochs(plan, 10, 15))
    epoch = filtered.take_epoch("run")
    attempt = filtered.open_attempt("run", epoch, 0, "start")
    for start in range(0, 8, 4):
        filtered.charge_steps("run", epoch, attempt, start, start + 4, nonce(start))
    attempt = filtered.open_attempt("run", epoch, 4, "void-step")
    filtered.charge_steps("run", epoch, attempt, 4, 8, nonce(4))
    assert units(filtered, "training/epoch-1")[1:] == (0, 10 * STEP)
    assert units(filtered, "training/epoch-2")[1:] == (13 * STEP, 2 * STEP)
    filtered.end_run("run", epoch, "completed", 8)
    assert units(filtered, "training/epoch-2") == (15 * STEP, 0, 2 * STEP)


def test_shares_have_to_pay_for_all_steps(filtered):
    plan = make_plan(evaluation=None)
    filtered.filters.move(FILTER, "training", "training/epoch-1", 30 * STEP)
    for count in (24, 26):
        refuses(
            filtered,
            InputError,
            lambda count=count: filtered.reserve("run", plan, make_epochs(plan, count)),
        )


def test_free_rho_moves_and_held_or_spent_rho_does_not(filtered):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    whole, reserved, spent = units(filtered)
    free = whole - reserved - spent
    refuses(
        filtered,
        BudgetError,
        lambda: filtered.filters.move(FILTER, "training", "tuning", free + 1),
        remaining_rho_units=free,
    )
    before = units(filtered, "tuning")[0]
    filtered.filters.move(FILTER, "training", "tuning", free)
    filtered.filters.move(FILTER, "tuning", "tuning/trial-1", 7)
    assert units(filtered) == (reserved + spent, reserved, spent)
    assert units(filtered, "tuning")[0] == before + free - 7
    assert units(filtered, "tuning/trial-1") == (7, 0, 0)
    filtered.filters.move(FILTER, "tuning/trial-1", "unassigned", 7)
    assert sum(
        p.rho_units for p in filtered.block_status(FILTER).filter.purposes
    ) == budget_units(30.0, 1e-5, ORDER)


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (("none", "training", "tuning", 1), UnknownBlockError, "unknown-block"),
        ((FILTER, "none", "tuning", 1), UnknownPurposeError, "unknown-purpose"),
        ((TRAIN, "training", "tuning", 1), BlockModeError, "block-mode"),
        ((FILTER, "training", "training", 1), InputError, "bad-input"),
        ((FILTER, "training", "no such/", 1), InputError, "bad-input"),
        ((FILTER, "training", "tuning", 0), InputError, "bad-input"),
        ((FILTER, "training", "tuning", -5), InputError, "bad-input"),
        ((FILTER, "training", "tuning", 0.5), InputError, "bad-input"),
        ((FILTER, "training", "tuning", math.nan), InputError, "bad-input"),
        ((FILTER, "training", "tuning", math.inf), InputError, "bad-input"),
        ((FILTER, "training", "tuning", True), InputError, "bad-input"),
    ],
)
def test_bad_moves_change_nothing(filtered, arguments, error, code):
    found = refuses(filtered, error, lambda: filtered.filters.move(*arguments))
    assert found.code == code


def test_modes_are_never_mixed(filtered):
    envelope = make_envelopes(PLAN, train=FILTER)[0]
    share = make_shares(PLAN)[0]
    looks = make_envelopes(PLAN)[1]
    for parts in (
        [envelope],
        [RhoShare.priced(TRAIN, "training", PLAN.event, ORDER)],
        [share, looks],
        [make_envelopes(PLAN)[0], make_shares(PLAN)[1]],
    ):
        error = refuses(
            filtered,
            BlockModeError,
            lambda parts=parts: filtered.reserve("r", PLAN, parts),
        )
        assert (error.code, error.exit_code) == ("block-mode", 2)


def test_a_share_pays_for_the_plans_events_at_the_blocks_order(filtered):
    share = make_shares(PLAN)[0]
    cheap = RhoShare(FILTER, "training", share.rho_units - 50, share.event)
    other = RhoShare.priced(FILTER, "training", Repeat(Gaussian(9.0), 25), ORDER)
    low = RhoShare.priced(FILTER, "training", PLAN.event, 2)
    for bad in (cheap, other, low):
        refuses(
            filtered, InputError, lambda bad=bad: filtered.reserve("r", PLAN, [bad])
        )
    refuses(filtered, InputError, lambda: filtered.reserve("r", PLAN, [share, share]))
    refuses(
        filtered, InputError, lambda: filtered.reserve("r", PLAN, make_shares(PLAN)[1:])
    )
    unknown = RhoShare.priced(FILTER, "training/epoch-9", PLAN.event, ORDER)
    refuses(
        filtered, UnknownPurposeError, lambda: filtered.reserve("r", PLAN, [unknown])
    )
    nowhere = RhoShare.priced("none", "training", PLAN.event, ORDER)
    refuses(filtered, UnknownBlockError, lambda: filtered.reserve("r", PLAN, [nowhere]))


def test_units_and_deltas_are_the_blocks(filtered):
    user = make_plan(unit="user", user=UserLevel("uls", 4, 4000), evaluation=None)
    refuses(
        filtered, InputError, lambda: filtered.reserve("r", user, make_shares(user))
    )
    small = make_plan(delta=1e-6, evaluation=None)
    refuses(
        filtered, InputError, lambda: filtered.reserve("r", small, make_shares(small))
    )


def test_several_blocks_all_or_nothing(filtered):
    plan = make_plan(evaluation=None)
    filtered.filters.create(
        filter_spec(name="poor", epsilon=4.0, purposes={"training": 1.0})
    )
    both = [*make_shares(plan), *make_shares(plan, train="poor")]
    refuses(
        filtered, BudgetError, lambda: filtered.reserve("r", plan, both), block="poor"
    )
    filtered.filters.create(filter_spec(name="rich", purposes={"training": 1.0}))
    both = [*make_shares(plan), *make_shares(plan, train="rich")]
    filtered.reserve("r", plan, both)
    epoch = filtered.take_epoch("r")
    attempt = filtered.open_attempt("r", epoch, 0, "start")
    filtered.charge_steps("r", epoch, attempt, 0, 4, nonce(1))
    assert units(filtered)[1:] == units(filtered, "training", "rich")[1:]
    assert units(filtered)[2] == 4 * STEP


def test_a_later_run_may_choose_its_noise_freely(filtered):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.end_run("run", epoch, "completed", 4)
    second = make_plan(noise_multiplier=2.5, sample_rate=0.05, evaluation=None)
    filtered.reserve("second", second, make_shares(second, "tuning"))
    assert units(filtered, "tuning")[1] == 25 * rho_units(second.step_event, ORDER)


def test_two_ledgers_never_both_get_the_last_units(filtered, place):
    plan = make_plan(evaluation=None)
    whole = purpose(filtered).rho_units
    filtered.filters.move(FILTER, "training", "tuning", whole - 25 * STEP)
    with open_ledger(place) as other:
        other.reserve("one", plan, make_shares(plan))
        refuses(
            filtered,
            BudgetError,
            lambda: filtered.reserve("two", plan, make_shares(plan)),
        )
        assert running(filtered) == running(other)


def test_the_state_is_the_replay(filtered, place):
    epoch, attempt = start_filter_run(filtered)
    filtered.charge_steps("run", epoch, attempt, 0, 4, nonce(1))
    filtered.filters.move(FILTER, "tuning", "training", 1000)
    filtered.end_run("run", epoch, "completed", 4)
    assert replay(location(place)) == running(filtered)
    kinds = [entry.kind for entry in filtered.history(block=FILTER)]
    assert " ".join(kinds) == "end move grant attempt epoch reserve filter_block"


def test_rounding_on_another_machine_does_not_break_a_replay(filtered):
    """Costs one unit below for each plain event pass; two units below do not."""
    looks = make_shares(PLAN)[1]
    each = 2  # plain events a look
    assert looks.slack_units_each == each
    near = RhoShare(LOOKS, "evaluation", looks.rho_units - 3 * each, looks.event)
    far = RhoShare(LOOKS, "evaluation", looks.rho_units - 3 * (each + 1), looks.event)
    train = make_shares(PLAN)[0]
    refuses(filtered, InputError, lambda: filtered.reserve("r", PLAN, [train, far]))
    filtered.reserve("r", PLAN, [train, near])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rho_units": 2}, BudgetError),
        ({"rho_units": -2}, BudgetError),
        ({"rho_units": 1}, None),  # as another machine may round it
        ({"purposes": 1}, BudgetError),
    ],
)
def test_the_rule_itself_knows_what_epsilon_buys(ledger, change, error):
    """A row that another writer made, not by FilterSpec."""
    body = filter_spec(purposes={"training": 1.0}).body()
    body["rho_units"] += change.get("rho_units", 0)
    body["purposes"] = {"training": body["rho_units"] + change.get("purposes", 0)}
    if error is None:
        ledger._chain.append("filter_block", lambda _: body)
        return
    refuses(ledger, error, lambda: ledger._chain.append("filter_block", lambda _: body))
