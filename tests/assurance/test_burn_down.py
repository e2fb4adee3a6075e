"""What was left of a block after each run, in the block's own measure."""

from __future__ import annotations

import pytest

from pft_ray.accounting.filters import UNITS
from pft_ray.assurance.burn_down import burn_down, measure_of
from pft_ray.ledger import Ledger
from pft_ray.ledger.joint import JointRun, joint_envelope
from tests.ledger.builders import (
    TRAIN,
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
)
from tests.ledger.filter_builders import FILTER, add_filter_blocks, make_shares

PLAN = make_plan(evaluation=None)


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path) as opened:
        add_blocks(opened)
        yield opened


def charge(ledger: Ledger, run_id: str, *, end: bool = False) -> None:
    epoch = ledger.take_epoch(run_id)
    attempt = ledger.open_attempt(run_id, epoch, 0, "start")
    ledger.charge_steps(run_id, epoch, attempt, 0, 4, nonce(1))
    if end:
        ledger.end_run(run_id, epoch, "completed", 4)


def steps_of(ledger, block):
    return burn_down(ledger.block_status(block), ledger.runs())


def test_plan_runs_take_their_whole_envelopes(ledger):
    for run_id, epsilon in (("a", 1.0), ("b", 0.5), ("gone", 0.25)):
        ledger.reserve(run_id, PLAN, make_envelopes(PLAN, epsilon))
    ledger.release_reservation("gone")
    charge(ledger, "a", end=True)
    assert measure_of(ledger.block_status(TRAIN)) == ("epsilon", 3.0)
    found = [(s.run_id, s.taken, s.is_used, s.left) for s in steps_of(ledger, TRAIN)]
    assert found == [("a", 1.0, True, 2.0), ("b", 0.5, False, 1.5)]


def test_filter_runs_that_are_over_took_what_they_were_charged(ledger):
    add_filter_blocks(ledger)
    share = make_shares(PLAN)[0]
    for run_id in ("over", "running"):
        ledger.reserve(run_id, PLAN, make_shares(PLAN))
    charge(ledger, "over", end=True)
    charge(ledger, "running")
    name, whole = measure_of(ledger.block_status(FILTER))
    over, running = steps_of(ledger, FILTER)
    assert name == "rho"
    assert over.taken == 4 * share.units_each / UNITS
    assert running.taken == share.rho
    left = ledger.block_status(FILTER).filter.remaining_rho_units / UNITS
    assert running.left == pytest.approx(left, rel=1e-12)
    assert whole == pytest.approx(running.left + over.taken + running.taken)


def test_runs_declared_together_take_their_envelope_once(ledger):
    plans = [make_plan(evaluation=None, noise_multiplier=s) for s in (3.0, 4.0)]
    envelope = joint_envelope(plans, TRAIN, "training", 1e-5)
    runs = [JointRun(f"run-{i}", plan, "") for i, plan in enumerate(plans)]
    ledger.joint.reserve(runs, [envelope])
    found = steps_of(ledger, TRAIN)
    assert [step.left for step in found] == pytest.approx([3.0 - envelope.epsilon] * 2)
