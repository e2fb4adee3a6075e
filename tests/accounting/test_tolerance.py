"""Rosters that may be short: what they cost, and which plans cannot have them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import Repeat
from pft_ray.accounting.owner_calibration import owner_rows
from pft_ray.accounting.owners import Owner, Owners, noise_against_colluders
from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.tolerance import needed_shares, noise_inflation, num_parties
from pft_ray.errors import PlanError

OWNERS = Owners("sample", (Owner("a", 500, 1.0, 0.02), Owner("b", 500, 3.0, 0.08)))


def make_plan(**changes) -> Plan:
    fields = {
        "unit": "record",
        "size": 1000,
        "sample_rate": 0.05,
        "noise_multiplier": 1.5,
        "phases": (Phase("one", 50, "head", 1.0),),
        "fault_reserve": 5,
        "delta": 1e-5,
        "num_shares": 8,
        "owners": OWNERS,
    }
    return Plan(**(fields | changes))


@pytest.mark.parametrize(("missing", "factor"), [(1, 1.069), (2, 1.155), (4, 1.414)])
def test_known_inflations_of_eight_shares(missing, factor):
    plan = make_plan(tolerate_missing=missing)
    assert noise_inflation(plan) == pytest.approx(factor, abs=5e-4)
    assert needed_shares(plan) == 8 - missing
    assert noise_inflation(make_plan()) == 1.0


def test_what_is_charged_is_the_plans_noise_whoever_is_absent():
    with_all, short = make_plan(), make_plan(tolerate_missing=3)
    assert short.event == with_all.event
    assert short.owner_event(0) == with_all.owner_event(0)
    assert short.expected_batch_size == with_all.expected_batch_size


def test_a_plan_without_tolerance_keeps_its_digest():
    assert "tolerate_missing" not in make_plan().to_dict()
    assert make_plan(tolerate_missing=0).digest == make_plan().digest
    assert make_plan(tolerate_missing=1).digest != make_plan().digest
    again = Plan.from_dict(make_plan(tolerate_missing=2).to_dict())
    assert again.tolerate_missing == 2


def test_parties_are_the_shares_only_where_some_may_be_absent():
    assert num_parties(make_plan(), 5) == 5
    assert num_parties(make_plan(tolerate_missing=3), 5) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"owners": None}, "central"),
        ({"tolerate_missing": 8}, "8 of 8"),
        ({"tolerate_missing": -1}, "tolerate_missing"),
        ({"tolerate_missing": 0.5}, "tolerate_missing"),
    ],
)
def test_plans_that_are_refused(change, says):
    with pytest.raises(PlanError, match=says):
        make_plan(**({"tolerate_missing": 1} | change))


def test_independent_workers_need_no_more_noise():
    plan = make_plan(owners=None, independent_workers=8, tolerate_missing=2)
    assert noise_inflation(plan) == 1.0
    assert plan.event == make_plan(owners=None, independent_workers=8).event


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("colluding", [0, 1, 2])
def test_against_colluders_it_is_the_worst_roster_that_counts(missing, colluding):
    """All rosters and coalitions of five owners on five workers, one by one."""
    workers = range(5)
    left = []
    for absent in combinations(range(1, 5), missing):
        there = [w for w in workers if w not in absent]
        for coalition in combinations(range(1, 5), colluding):
            hidden = sum(w not in coalition for w in there)
            left.append(Fraction(hidden, 5 - missing))
    found = noise_against_colluders(
        0,
        num_owners=5,
        num_workers=5,
        num_shares=5,
        num_colluding=colluding,
        num_missing=missing,
    )
    assert found == min(left)


def test_the_table_of_owners_counts_the_absent():
    plan = make_plan(num_shares=4, tolerate_missing=1)
    row = owner_rows(plan, num_workers=4, num_colluding=1)[1]
    # Each owner runs two of four workers; of the three that are there the other owner
    # knows two, and what is left has a third of the noise.
    step = OWNERS.step_event(1, 1.5 * math.sqrt(1 / 3))
    known = epsilon(Repeat(step, 55), 1e-5)
    assert row["epsilon_against_colluders"] == pytest.approx(known, rel=1e-9)
    assert row["epsilon"] == epsilon(plan.owner_event(1), 1e-5)
