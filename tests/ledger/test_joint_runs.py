"""Runs declared together: one price, one reservation, used and given back whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import Composed
from pft_ray.errors import (
    AttemptClosedError,
    BlockModeError,
    BudgetError,
    InputError,
    SettledError,
    UnknownBlockError,
    VerificationError,
)
from pft_ray.ledger import Envelope, JointRun, joint_envelope, verify
from tests.ledger.builders import (
    TRAIN,
    VALIDATION,
    location,
    make_envelopes,
    make_plan,
    nonce,
    where,
)
from tests.ledger.filter_builders import FILTER, add_filter_blocks
from tests.ledger.replaying import replay, running

PLANS = [
    make_plan(noise_multiplier=3.0),
    make_plan(noise_multiplier=4.0, sample_rate=0.05),
]
RUNS = [JointRun(f"run-{i}", plan) for i, plan in enumerate(PLANS)]
ENVELOPES = [
    joint_envelope(PLANS, TRAIN, "training", 1e-5),
    joint_envelope(PLANS, VALIDATION, "evaluation", 1e-5),
]


def begin(ledger, run_id):
    epoch = ledger.take_epoch(run_id)
    return epoch, ledger.open_attempt(run_id, epoch, 0, "start")


def refuses(ledger, error, runs=RUNS, envelopes=ENVELOPES):
    before = ledger.position()
    with pytest.raises(error):
        ledger.joint.reserve(runs, envelopes)
    assert ledger.position() == before


def test_together_they_cost_less_than_one_by_one():
    """Against another accountant that composes all steps of both plans."""
    oracle = PLDAccountant(value_discretization_interval=1e-3)
    for plan in PLANS:
        gaussian = dp_event.GaussianDpEvent(plan.noise_multiplier)
        step = dp_event.PoissonSampledDpEvent(plan.sample_rate, gaussian)
        oracle.compose(step, 25)
    found = ENVELOPES[0].epsilon
    assert found == pytest.approx(oracle.get_epsilon(1e-5), rel=5e-3)
    alone = sum(epsilon(plan.event, 1e-5) for plan in PLANS)
    assert max(epsilon(plan.event, 1e-5) for plan in PLANS) < found < alone


def test_one_reservation_for_all_of_them(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    status = ledger.block_status(TRAIN)
    assert status.reserved_epsilon == ENVELOPES[0].epsilon
    assert status.used_epsilon == 0
    assert [run.group for run in ledger.runs()] == [("run-0", "run-1")] * 2
    assert len({ledger.reservation_position(run.run_id) for run in RUNS}) == 1


def test_the_first_charge_of_any_uses_the_whole(ledger, place):
    ledger.joint.reserve(RUNS, ENVELOPES)
    epoch, attempt = begin(ledger, "run-1")
    ledger.charge_steps("run-1", epoch, attempt, 0, 4, nonce(1))
    used = ledger.block_status(TRAIN).used_epsilon
    assert used == ENVELOPES[0].epsilon
    epoch, attempt = begin(ledger, "run-0")
    ledger.charge_steps("run-0", epoch, attempt, 0, 4, nonce(1))
    ledger.charge_look("run-0", epoch, "step-4")
    assert ledger.block_status(TRAIN).used_epsilon == used
    assert ledger.block_status(VALIDATION).used_epsilon == ENVELOPES[1].epsilon
    before = ledger.position()
    for run in ("run-0", "run-1"):
        with pytest.raises(BudgetError):
            ledger.release_reservation(run)
    assert ledger.position() == before
    assert replay(location(place)) == running(ledger)


def test_no_member_is_given_back_once_another_was_charged(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    epoch, _ = begin(ledger, "run-0")
    ledger.charge_look("run-0", epoch, "before")
    with pytest.raises(BudgetError):
        ledger.release_reservation("run-1")


def test_before_any_charge_all_are_given_back_together(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    epoch, attempt = begin(ledger, "run-0")
    ledger.release_reservation("run-1")
    status = ledger.block_status(TRAIN)
    assert (status.reserved_epsilon, status.remaining_delta) == (0.0, 1e-4)
    assert [run.status for run in ledger.runs()] == ["released"] * 2
    with pytest.raises(AttemptClosedError):
        ledger.charge_steps("run-0", epoch, attempt, 0, 4, nonce(1))
    with pytest.raises(SettledError):
        ledger.release_reservation("run-0")


def test_each_run_keeps_its_own_allowance(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    for run in ("run-0", "run-1"):
        epoch, attempt = begin(ledger, run)
        for number in range(6):
            attempt = ledger.open_attempt(run, epoch, 0, "again")
            ledger.charge_steps(run, epoch, attempt, 0, 4, nonce(number))
        attempt = ledger.open_attempt(run, epoch, 0, "again")
        with pytest.raises(BudgetError):
            ledger.charge_steps(run, epoch, attempt, 0, 4, nonce(9))
        assert ledger.run_status(run).num_steps_charged == 24


def test_bad_declarations_change_nothing(ledger):
    add_filter_blocks(ledger)
    train, looks = ENVELOPES
    refuses(ledger, InputError, runs=RUNS[:1])
    refuses(ledger, InputError, runs=[RUNS[0], replace(RUNS[1], run_id="run-0")])
    refuses(ledger, InputError, runs=RUNS[::-1])
    refuses(ledger, InputError, envelopes=[looks])
    refuses(ledger, InputError, envelopes=[train, train])
    refuses(ledger, InputError, envelopes=make_envelopes(PLANS[0]))
    short = Composed((PLANS[0].event, PLANS[0].event))
    refuses(ledger, InputError, envelopes=[replace(train, event=short), looks])
    refuses(ledger, InputError, envelopes=[replace(train, delta_units=10), looks])
    refuses(ledger, BlockModeError, envelopes=[replace(train, block=FILTER), looks])
    refuses(ledger, UnknownBlockError, envelopes=[replace(train, block="none"), looks])
    much = replace(train, epsilon_units=3 * 10**9 + 1)
    refuses(ledger, BudgetError, envelopes=[much, looks])
    ledger.reserve("run-1", PLANS[1], make_envelopes(PLANS[1]))
    refuses(ledger, InputError)


def test_verification_prices_them_together(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    result = verify(where(ledger))
    for run, plan in zip(result.runs, PLANS, strict=True):
        looks = epsilon(plan.evaluation.event, 1e-5)
        assert run.epsilon == pytest.approx(max(epsilon(plan.event, 1e-5), looks))
        assert run.envelopes[0].epsilon == pytest.approx(ENVELOPES[0].epsilon)


def test_too_small_a_joint_envelope_is_found(ledger):
    train, looks = ENVELOPES
    alone = max(epsilon(plan.event, 1e-5) for plan in PLANS)
    cheap = Envelope.priced(TRAIN, "training", alone, 1e-5, train.event)
    ledger.joint.reserve(RUNS, [cheap, looks])
    with pytest.raises(VerificationError, match="its training envelope holds"):
        verify(where(ledger))


def test_history_of_a_run_names_the_joint_reservation(ledger):
    ledger.joint.reserve(RUNS, ENVELOPES)
    assert [e.kind for e in ledger.history(run_id="run-1")] == ["joint_reserve"]
