"""A report of a run on filter blocks: the whole reservation at the block's order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pft_ray.accounting.filter_calibration import epsilon_at_order
from pft_ray.accounting.filters import epsilon_of_units, rho_units
from pft_ray.assurance.report import BlockLine, build_report
from pft_ray.assurance.report_html import render_html
from pft_ray.errors import VerificationError
from tests.assurance.report_cases import TRAIN, VALIDATION, make_facts, make_plan

PLAN = make_plan()
ORDER = 6
COST = epsilon_at_order(PLAN.event, 1e-5, ORDER)
LOOKS = epsilon_at_order(PLAN.evaluation.event, 1e-5, ORDER)


def line(name, role, run_epsilon, **changes):
    block = BlockLine(
        name=name,
        role=role,
        epsilon=30.0,
        delta=1e-5,
        run_epsilon=run_epsilon,
        run_delta=1e-5,
        epsilon_reserved=run_epsilon,
        mode="filter",
        order=ORDER,
    )
    return replace(block, **changes)


def facts(*lines, stated=COST):
    lines = lines or (
        line(TRAIN, "training", COST),
        line(VALIDATION, "evaluation", LOOKS),
    )
    return make_facts(blocks=lines, epsilon_by_accountant={"pld": None, "rdp": stated})


def test_the_reservation_at_the_order_is_stated_and_no_pld():
    report = build_report(facts())
    assert report["epsilon"] == max(COST, LOOKS)
    assert report["epsilon_by_accountant"] == {"pld": None, "rdp": COST}
    assert report["delta"] == 1e-5
    assert report["block"] == {"name": TRAIN, "epsilon": 30.0, "delta": 1e-5}
    assert [(b["mode"], b["order"]) for b in report["blocks"]] == [
        ("filter", ORDER)
    ] * 2
    assert "accounting_note" in report


def test_plan_runs_have_no_word_of_it():
    report = build_report(make_facts())
    assert not {"accounting", "accounting_note"} & set(report)
    assert all("mode" not in block for block in report["blocks"])


def test_one_block_for_both_roles_counts_once():
    units = rho_units(PLAN.event, ORDER) + rho_units(PLAN.evaluation.event, ORDER)
    both = epsilon_of_units(units, 1e-5, ORDER)
    assert both < COST + LOOKS
    report = build_report(
        facts(line(TRAIN, "training", both), line(TRAIN, "evaluation", both))
    )
    assert (report["epsilon"], report["delta"]) == (both, 1e-5)


def test_overlapping_blocks_are_summed():
    report = build_report(
        facts(
            line(TRAIN, "training", COST, overlapping=(VALIDATION,)),
            line(VALIDATION, "evaluation", LOOKS, overlapping=(TRAIN,)),
        )
    )
    assert report["epsilon"] == math.fsum([COST, LOOKS])
    assert report["delta"] == 2e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"stated": COST - 1e-3},
        {"stated": None},
        {"stated": COST, "run": COST - 1e-3},
    ],
)
def test_less_than_the_plan_costs_is_refused(wrong):
    training = line(TRAIN, "training", wrong.get("run", COST))
    made = facts(
        training, line(VALIDATION, "evaluation", LOOKS), stated=wrong["stated"]
    )
    with pytest.raises(VerificationError):
        build_report(made)


def test_the_page_says_the_order_and_nothing_of_other_runs():
    made = facts()
    page = render_html(build_report(made), made)
    assert f"filter, order {ORDER}" in page
    assert page.count("not told") == 4
    assert "(PLD)" not in page
