"""Verification of filter blocks: prices and sums computed anew, edits found."""

from __future__ import annotations

import json

import pytest

from pft_ray.accounting.filters import UNITS, epsilon_of_units, rho_units
from pft_ray.errors import VerificationError
from pft_ray.ledger import RhoShare, run_rules, share_rules, verify
from pft_ray.ledger.filter_verify import check_filter_blocks, check_shares_anew
from tests.ledger.builders import (
    add_blocks,
    live_through,
    location,
    make_plan,
    nonce,
    open_ledger,
    where,
)
from tests.ledger.filter_builders import (
    FILTER,
    ORDER,
    add_filter_blocks,
    filter_spec,
    make_shares,
    start_filter_run,
)
from tests.ledger.replaying import replay

PLAN = make_plan()


@pytest.fixture
def filtered(ledger):
    """A ledger with filter blocks, a charged run, a settled one and a move."""
    add_filter_blocks(ledger)
    for run, status in (("run", "interrupted"), ("done", "completed")):
        epoch, attempt = start_filter_run(ledger, run)
        ledger.charge_steps(run, epoch, attempt, 0, 4, nonce(1))
        ledger.charge_look(run, epoch, "step-4")
        ledger.end_run(run, epoch, status, 4)
    ledger.filters.move(FILTER, "tuning", "training", 12345)
    return ledger


def test_a_filter_run_is_stated_at_its_whole_reservation(filtered):
    result = verify(where(filtered))
    assert json.dumps(result.to_dict())
    step = rho_units(PLAN.step_event, ORDER)
    looks = rho_units(PLAN.evaluation.event, ORDER)
    whole = [epsilon_of_units(n, 1e-5, ORDER) for n in (25 * step, looks)]
    for run in result.runs:
        assert run.num_steps_charged == 4
        assert run.epsilon == run.envelope == max(whole)
        assert run.delta == 1e-5
        assert [check.epsilon for check in run.envelopes] == whole


def test_training_and_looks_on_one_block_convert_once(ledger):
    add_filter_blocks(ledger)
    ledger.filters.move(FILTER, "tuning", "evaluation", 2 * UNITS)
    looks = RhoShare.priced(FILTER, "evaluation", PLAN.evaluation.event, ORDER)
    ledger.reserve("run", PLAN, [make_shares(PLAN)[0], looks])
    total = rho_units(PLAN.event, ORDER) + rho_units(PLAN.evaluation.event, ORDER)
    (run,) = verify(where(ledger)).runs
    assert run.epsilon == epsilon_of_units(total, 1e-5, ORDER)


def test_blocks_that_overlap_are_summed(ledger):
    add_filter_blocks(ledger)
    ledger.filters.create(filter_spec(name="more", purposes={"training": 1.0}))
    plan = make_plan(evaluation=None)
    ledger.reserve("run", plan, [*make_shares(plan), *make_shares(plan, train="more")])
    (run,) = verify(where(ledger)).runs
    one = epsilon_of_units(rho_units(plan.event, ORDER), 1e-5, ORDER)
    assert run.epsilon == pytest.approx(2 * one)
    assert run.delta == pytest.approx(2e-5)


@pytest.mark.parametrize(
    "field", ["spent_rho_units", "reserved_rho_units", "rho_units"]
)
def test_accounts_that_are_not_what_runs_took_are_found(filtered, place, field):
    state = replay(location(place))
    check_filter_blocks(state)
    account = state.blocks[FILTER].filter.accounts["training"]
    setattr(account, field, getattr(account, field) - 1)
    with pytest.raises(VerificationError, match="are not what its runs took"):
        check_filter_blocks(state)


def test_a_share_below_its_price_is_found(ledger, place, monkeypatch):
    """As a writer with a cheaper accountant would have left it."""
    add_filter_blocks(ledger)
    plan = make_plan(evaluation=None)
    cheap = RhoShare(FILTER, "training", plan.num_steps_max * 1000, plan.event)
    with monkeypatch.context() as patch:
        patch.setattr(share_rules, "rho_units", lambda *_: 1)
        ledger.reserve("run", plan, [cheap])
        state = replay(location(place))
    with pytest.raises(VerificationError, match="breaks a rule"):
        verify(where(ledger))
    with pytest.raises(VerificationError, match="its share of 'training' holds 25000"):
        check_shares_anew(state, state.runs["run"])


def test_plan_runs_and_filter_runs_share_a_ledger(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        live_through(ledger, "plan-run")
        add_filter_blocks(ledger)
        start_filter_run(ledger, "filter-run")
        result = verify(where(ledger), epsilon=lambda *_: 1e-6)
        assert [run.run_id for run in result.runs] == ["plan-run", "filter-run"]


def test_an_overdrawn_purpose_is_found_though_the_block_is_not(filtered, place):
    state = replay(location(place))
    accounts = state.blocks[FILTER].filter.accounts
    moved = accounts["training"].free_rho_units + 1
    accounts["training"].rho_units -= moved
    accounts["tuning"].rho_units += moved
    with pytest.raises(VerificationError, match="are not what its runs took"):
        check_filter_blocks(state)


def test_charges_that_a_replay_forgets_are_found(filtered, monkeypatch):
    """As a version whose rules do not count would replay."""
    verify(where(filtered))
    monkeypatch.setattr(run_rules, "charge_shares", lambda *_: None)
    with pytest.raises(VerificationError, match="are not what its runs took"):
        verify(where(filtered))
