"""report.json: exactly what may leave the house, and numbers that hold."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import Repeat
from pft_ray.accounting.plan import Phase, UserLevel
from pft_ray.assurance.claims import collect_claims
from pft_ray.assurance.report import BlockLine, Look, ReportFacts, build_report
from pft_ray.assurance.report_html import render_html
from pft_ray.assurance.wording import guarantee_sentence, round_up
from pft_ray.errors import InputError, VerificationError
from tests.assurance.report_cases import (
    TRAIN,
    VALIDATION,
    baseline_facts,
    looks_plan,
    make_blocks,
    make_facts,
    make_plan,
    result,
)

FIELDS = {
    "schema_version", "pft_ray_version", "run_id", "status", "unit", "relation",
    "relation_domain", "relation_note", "guarantee_scope", "scope_note", "guarantee",
    "not_covered", "epsilon", "delta", "target_epsilon", "epsilon_by_accountant",
    "block", "blocks", "noise_multiplier", "sample_rate", "clip_norm", "phases",
    "num_steps_planned", "num_steps_max", "workers", "utility", "utility_all",
    "interval_note", "ledger", "plan_digest",
}  # fmt: skip
# What only the operator may know, as words and as parts of field names.
FORBIDDEN = (
    r"attempt\w*|timings?|drop(ped|s)?|charged|executed|elapsed|durations?|seconds?|"
    r"duplicates?|resum\w*|crash\w*|restart\w*|exhausted|interrupted|completed|failed|"
    r"exit|causes?|dates?|times?|retr\w*|grants?|num_steps_(released|charged)|\w+_s"
)


def test_report_has_the_agreed_fields_and_no_other():
    report = build_report(make_facts())
    assert set(report) == FIELDS
    assert set(report["block"]) == {"name", "epsilon", "delta"}
    assert set(report["ledger"]) == {"sequence", "root"}
    assert set(report["epsilon_by_accountant"]) == {"pld", "rdp"}
    for block in report["blocks"]:
        assert set(block) == {
            "name", "role", "epsilon", "delta", "run_epsilon", "run_delta"
        }  # fmt: skip
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_values_come_from_plan_reservation_and_last_look():
    report = build_report(make_facts())
    assert report["status"] == "released"
    assert (report["unit"], report["relation"]) == ("record", "add_remove")
    assert (report["num_steps_planned"], report["num_steps_max"]) == (60, 70)
    assert report["clip_norm"] == [1.0, 0.1]
    assert report["block"] == {"name": TRAIN, "epsilon": 30.0, "delta": 1e-4}
    assert report["ledger"] == {"sequence": 4, "root": "ab12" * 16}
    assert report["utility"] == {
        "metric": "accuracy",
        "private": 0.95,
        "interval": [0.93, 0.97],
        "trivial": 0.757,
    }
    assert [look["step"] for look in report["utility_all"]] == [40, 60]
    assert report["plan_digest"] == make_plan().digest


def test_equal_clip_norms_are_one_number():
    plan = make_plan(phases=(Phase("a", 40, "head", 0.5), Phase("b", 20, "head", 0.5)))
    assert build_report(make_facts(plan=plan))["clip_norm"] == 0.5


def test_epsilon_is_that_of_all_paid_steps_by_another_accountant():
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    plan = make_plan(evaluation=None)
    facts = make_facts(plan=plan, looks=())
    step = dp_event.PoissonSampledDpEvent(
        plan.sample_rate, dp_event.GaussianDpEvent(plan.noise_multiplier)
    )
    oracle = PLDAccountant(value_discretization_interval=1e-3).compose(step, 70)
    report = build_report(facts)
    assert report["epsilon"] == pytest.approx(oracle.get_epsilon(1e-5), rel=5e-3)
    assert report["epsilon"] == report["epsilon_by_accountant"]["pld"]
    fewer = epsilon(Repeat(plan.step_event, 60), 1e-5)
    assert report["epsilon"] > 1.05 * fewer


def test_nothing_about_the_course_of_a_run_can_be_told():
    """The facts have no field for it: a new one must be argued for here."""
    names = {field.name for field in dataclasses.fields(ReportFacts)}
    assert names == {
        "run_id", "job_name", "plan", "epsilon_by_accountant", "blocks",
        "training_block", "looks", "workers", "public", "reservation_sequence",
        "reservation_root", "model", "registration", "curve",
        "user_column", "last_clip_norms", "num_colluding",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(BlockLine)} == {
        "name", "role", "epsilon", "delta", "run_epsilon", "run_delta",
        "epsilon_reserved", "overlapping", "owner", "mode", "order",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(Look)} == {"step", "phase", "metrics"}
    assert build_report(make_facts()) == build_report(make_facts())


@pytest.mark.parametrize("facts", [make_facts, baseline_facts])
def test_no_word_of_the_operator_is_in_either_file(facts):
    made = facts()
    report = build_report(made)
    page = render_html(report, made)
    text = re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    # "k times the epsilon" is arithmetic, not a clock.
    words = (json.dumps(report) + text).replace("k times the", "")
    found = re.search(rf"\b({FORBIDDEN})\b", words.replace('"', " "), re.IGNORECASE)
    assert found is None, found
    for poison in ('"attempts"', "elapsed", "num_steps_charged", "prepare_s"):
        assert re.search(rf"\b({FORBIDDEN})\b", poison), poison


def test_evaluation_that_costs_more_is_what_the_report_states():
    looks = looks_plan(sigma=1.5, delta=1e-4)
    plan = make_plan(evaluation=looks)
    cost = epsilon(looks.event, looks.delta)
    blocks = make_blocks(plan, run_epsilon=12.0, run_delta=1e-4)
    report = build_report(make_facts(plan=plan, blocks=blocks))
    assert cost > 5
    assert report["epsilon"] == cost
    assert report["delta"] == 1e-4
    assert report["epsilon_by_accountant"]["pld"] < 3


@pytest.mark.parametrize("shared", ["same-block", "first-names", "second-names"])
def test_blocks_that_may_share_a_unit_are_summed(shared):
    plan = make_plan()
    training, evaluation = make_blocks(plan)
    if shared == "same-block":
        evaluation = dataclasses.replace(evaluation, name=TRAIN)
    elif shared == "first-names":
        training = dataclasses.replace(training, overlapping=(VALIDATION,))
    else:
        evaluation = dataclasses.replace(evaluation, overlapping=("x", TRAIN))
    report = build_report(make_facts(plan=plan, blocks=(training, evaluation)))
    both = epsilon(plan.event, 1e-5) + epsilon(plan.evaluation.event, 1e-5)
    assert report["epsilon"] == pytest.approx(both, rel=1e-12)
    assert report["delta"] == pytest.approx(2e-5, rel=1e-12)
    assert f"ε = {round_up(both)}" in report["guarantee"]


def test_blocks_of_other_runs_that_overlap_change_nothing():
    plan = make_plan()
    lines = [
        dataclasses.replace(line, overlapping=("elsewhere",))
        for line in make_blocks(plan)
    ]
    report = build_report(make_facts(blocks=tuple(lines)))
    assert report["epsilon"] < 3


@pytest.mark.parametrize("steps", [30, 60, 69, 71])
def test_epsilon_at_another_number_of_steps_is_refused(steps):
    plan = make_plan()
    value = epsilon(Repeat(plan.step_event, steps), plan.delta)
    with pytest.raises(VerificationError, match="70 steps"):
        build_report(make_facts(epsilon_by_accountant={"pld": value, "rdp": 4.0}))


@pytest.mark.parametrize(
    "changes",
    [
        {"run_epsilon": 2.9},
        {"run_delta": 9e-6},
        {"epsilon_reserved": 2.0},
        {"epsilon": 11.0},
        {"epsilon": math.nan},
        {"run_epsilon": math.nan},
    ],
)
def test_budget_that_does_not_cover_the_plan_is_refused(changes):
    plan = make_plan()
    with pytest.raises(VerificationError, match="does not cover"):
        build_report(make_facts(blocks=make_blocks(plan, **changes)))


def test_every_block_of_the_plan_must_be_there_once():
    plan = make_plan()
    training, evaluation = make_blocks(plan)
    for blocks in ((training,), (evaluation,), (training, training), ()):
        with pytest.raises(InputError):
            build_report(make_facts(blocks=blocks))
    with pytest.raises(InputError):
        build_report(make_facts(training_block="other"))
    alone = make_plan(evaluation=None)
    with pytest.raises(InputError):
        build_report(make_facts(plan=alone, blocks=(training, evaluation), looks=()))


def test_private_data_never_come_with_a_non_private_result():
    looks = (
        Look(40, "head", [result(), result("auroc", non_private=0.99)]),
        Look(60, "lora", [result()]),
    )
    with pytest.raises(InputError, match="private data"):
        build_report(make_facts(looks=looks))
    assert build_report(make_facts(looks=looks, public=True))


@pytest.mark.parametrize(
    "metric",
    [
        result(raw_private=0.951),
        result(num_correct=998),
        {"metric": "accuracy", "private": 0.9},
        result(private=math.nan),
        result(interval=[0.9, math.inf]),
        result(interval=[0.97, 0.93]),
        result(trivial=math.nan),
    ],
)
def test_result_that_is_no_released_number_is_refused(metric):
    with pytest.raises(InputError):
        build_report(make_facts(looks=(Look(60, "lora", [metric]),)))


def test_look_without_a_result_is_refused():
    with pytest.raises(InputError):
        build_report(make_facts(looks=(Look(60, "lora", []),)))


def test_no_looks_make_no_utility():
    report = build_report(make_facts(looks=()))
    assert report["utility"] is None
    assert report["utility_all"] == []


def test_demonstration_says_what_it_is():
    private, public = build_report(make_facts()), build_report(baseline_facts())
    assert private["guarantee_scope"] == "fine-tuning data"
    assert public["guarantee_scope"] == "demonstration"
    assert "searched on this very data" in public["scope_note"]
    assert "baseline" in public["scope_note"]
    assert "the private run releases" in public["guarantee"]
    assert "baseline" not in json.dumps(private)
    assert public["utility"]["non_private"] == 0.979


def test_prepared_relation_is_explained():
    prepared = build_report(make_facts())
    raw = build_report(make_facts(plan=make_plan(relation_domain="raw")))
    words = "removing one raw record may change two prepared ones"
    assert words in prepared["relation_note"]
    assert words not in raw["relation_note"]
    assert "prepared data" in prepared["guarantee"]
    assert "prepared data" not in raw["guarantee"]


def test_limits_of_the_guarantee_are_named():
    text = " ".join(build_report(make_facts())["not_covered"])
    for words in ("pre-training data", "when it is served", "records of one person"):
        assert words in text
    plan = make_plan(unit="user", user=UserLevel("uls", 4, 9000))
    users = build_report(make_facts(plan=plan, user_column="sender"))
    assert "records of one person" not in " ".join(users["not_covered"])
    assert "A person who is several users" in " ".join(users["not_covered"])
    assert "any one user (by `sender`) of the" in users["guarantee"]
    assert "not a person" in users["unit_note"]
    assert (users["unit"], users["user"]["max_records_per_user"]) == ("user", 4)
    assert "user" not in build_report(make_facts())


def test_sentence_bounds_the_probabilities():
    sentence = guarantee_sentence(math.log(2), 1e-5, "user", "raw", baseline=False)
    assert "one user" in sentence
    assert "factor of 2.00 (e^ε), plus δ" in sentence
    assert "ε = 0.694, δ = 1e-5" in sentence
    huge = guarantee_sentence(800.0, 1e-5, "user", "raw", baseline=False)
    assert "factor of e^ε, plus" in huge


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (2.99946, 3, "3.00"),
        (3.0, 3, "3.00"),
        (3.0001, 3, "3.01"),
        (1.0999, 3, "1.10"),
        (1e-4, 3, "1e-4"),
        (1e-5, 3, "1e-5"),
        (1.2345e-5, 3, "1.24e-5"),
        (9.9999, 2, "10.0"),
        (0.00123, 3, "0.00123"),
        (123456.7, 3, "124000"),
        (1234567.0, 3, "1.24e6"),
        (0.0, 3, "0"),
        (math.inf, 3, "unbounded"),
    ],
)
def test_rounding_up_by_hand(value, digits, text):
    assert round_up(value, digits) == text


@given(st.floats(1e-300, 1e300), st.integers(1, 12))
def test_a_shown_loss_is_never_below_the_real_one(value, digits):
    shown, exact = Decimal(round_up(value, digits)), Decimal(repr(value))
    assert exact <= shown <= exact * (1 + Decimal(10) ** (1 - digits))


def test_verification_reads_the_claim_of_a_report(tmp_path):
    folder = tmp_path / "quickstart-abc123"
    folder.mkdir()
    report = build_report(make_facts())
    (folder / "report.json").write_text(json.dumps(report))
    (claim,) = collect_claims(tmp_path)
    assert (claim.sequence, claim.root) == (4, "ab12" * 16)
    assert claim.counts == "reservations"


def test_reports_need_neither_torch_nor_ray_nor_matplotlib_to_import():
    code = (
        "import sys, pft_ray.assurance.report, pft_ray.assurance.report_html\n"
        "bad = {'torch', 'ray', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
