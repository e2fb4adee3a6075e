"""The waiting queue on filter blocks: purposes are budgets of their own."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pft_ray.errors import BudgetError, MustWaitError
from pft_ray.ledger.admission import Order, Supply
from pft_ray.ledger.turns import account_key, job_of, supply_of, words_of
from tests.ledger.builders import add_blocks, make_plan, nonce
from tests.ledger.filter_builders import (
    FILTER,
    add_filter_blocks,
    make_shares,
    purpose,
)

PLAN = make_plan(evaluation=None)
SHARE = make_shares(PLAN)[0]


@pytest.fixture
def filtered(empty_ledger):
    """Room for two runs in training and for one in tuning."""
    add_blocks(empty_ledger)
    add_filter_blocks(empty_ledger, purposes={"training": 1.0})
    whole = purpose(empty_ledger).rho_units
    empty_ledger.filters.move(
        FILTER, "training", "tuning", SHARE.rho_units + SHARE.rho_units // 2
    )
    left = whole - SHARE.rho_units - SHARE.rho_units // 2
    rest = left - 2 * SHARE.rho_units - SHARE.rho_units // 2
    empty_ledger.filters.move(FILTER, "training", "unassigned", rest)
    return empty_ledger


def ask(ledger, run_id, name="training", **options):
    return ledger.queue.request(run_id, PLAN, make_shares(PLAN, name), **options)


def test_a_run_waits_for_its_own_purpose_only(filtered):
    assert [ask(filtered, run) for run in ("a", "b")] == ["reserved", "reserved"]
    assert ask(filtered, "c") == "waiting"
    assert ask(filtered, "d", "tuning") == "reserved"
    (row,) = filtered.queue.waiting()
    assert row.blocks == (f"{FILTER}, purpose training",)
    assert row.waits_for["part"] == "rho"
    missing = SHARE.rho - purpose(filtered).remaining_rho_units / 2**40
    assert row.waits_for["missing"] == pytest.approx(missing, abs=1e-9)
    assert filtered.block_status(FILTER).num_waiting == 1
    with pytest.raises((MustWaitError, BudgetError)):
        filtered.reserve("e", PLAN, make_shares(PLAN))


def test_what_a_run_gives_back_admits_the_next(filtered):
    for run in ("a", "b", "c"):
        ask(filtered, run)
    epoch = filtered.take_epoch("a")
    attempt = filtered.open_attempt("a", epoch, 0, "start")
    filtered.charge_steps("a", epoch, attempt, 0, 4, nonce(1))
    assert filtered.queue.admit() == ()
    filtered.end_run("a", epoch, "completed", 4)
    assert filtered.queue.admit() == ("c",)
    assert filtered.run_status("c").status == "reserved"
    held = purpose(filtered)
    assert held.reserved_rho_units == 2 * SHARE.rho_units
    assert held.spent_rho_units == 4 * SHARE.units_each


def test_rho_that_is_moved_to_a_purpose_admits_who_waits_for_it(filtered):
    for run in ("a", "b", "c"):
        ask(filtered, run)
    filtered.filters.move(FILTER, "unassigned", "training", SHARE.rho_units)
    assert filtered.queue.admit() == ("c",)


def test_more_than_a_purpose_has_is_refused_and_never_queued(filtered):
    ask(filtered, "a", "tuning")
    epoch = filtered.take_epoch("a")
    attempt = filtered.open_attempt("a", epoch, 0, "start")
    for start in (0, 4, 8, 10, 14, 18):
        stop = {8: 10, 18: 20}.get(start, start + 4)
        filtered.charge_steps("a", epoch, attempt, start, stop, nonce(start))
    position = filtered.position()
    with pytest.raises(BudgetError, match="purpose tuning"):
        ask(filtered, "b", "tuning")
    assert filtered.position() == position


def test_an_expired_share_goes_back_to_its_purpose(filtered):
    before = purpose(filtered).remaining_rho_units
    ask(filtered, "a", time_limit_s=1.0)
    assert purpose(filtered).remaining_rho_units == before - SHARE.rho_units
    assert filtered.queue.expire("a", 0)
    assert purpose(filtered).remaining_rho_units == before


def test_shares_are_measured_by_the_whole_block(filtered):
    with filtered._chain.reading() as state:
        key = account_key(SHARE)
        job = job_of(state, "x", [SHARE])
        whole = state.blocks[FILTER].filter.rho_units
        assert job.demand == {key: (Fraction(SHARE.rho_units, whole),)}
        supply = supply_of(state, key)
        account = state.blocks[FILTER].filter.accounts["training"]
        assert supply.left == (Fraction(account.free_rho_units, whole),)
        assert supply.whole == (Fraction(account.rho_units, whole),)
        assert words_of(key) == f"{FILTER}, purpose training"


def test_arrivals_unlock_a_purpose_in_proportion():
    half = (Fraction(1, 2),)
    supply = Supply(half, half, 1, whole=half)
    assert supply.free(Order("dpf", 4)) == (Fraction(1, 8),)
    assert supply._replace(num_arrivals=4).free(Order("dpf", 4)) == half
