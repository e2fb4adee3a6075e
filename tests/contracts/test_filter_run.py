"""A run on filter blocks from the job file to the report, by the worker's own code."""

from __future__ import annotations

import json

import pytest

from pft_ray.accounting.filters import UNITS, epsilon_of_units, rho_units
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.config import build_job, load_job
from pft_ray.errors import BlockModeError, BudgetError, PlanError
from pft_ray.ledger import Ledger, verify
from pft_ray.ledger.home import ledger_location
from tests.contracts.stage import set_stage
from tests.e2e.refusals import pft
from tests.tiny_job import write_job

FILTER = {
    "privacy__accounting": "filter",
    "privacy__fault_reserve": 4,
    "cluster__workers": 2,
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The tiny job on filter blocks, with a home of its own; Ray is played."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    set_stage(monkeypatch)
    return write_job(tmp_path / "job", **FILTER)


def opened() -> Ledger:
    return Ledger.open(ledger_location(None))


def rho_of(ledger, block, purpose):
    (found,) = [
        p for p in ledger.block_status(block).filter.purposes if p.name == purpose
    ]
    return found


def test_a_whole_run_reports_its_reservation_and_returns_the_rest(job):
    built = build_job(load_job(job), job.parent)
    train, looks = built.shares
    order = built.orders["tiny-data/train"]
    reserved = epsilon_of_units(
        20 * rho_units(built.plan.step_event, order), 1e-5, order
    )
    assert 7.99 < reserved <= 8

    created = pft("budget", "create", job, "--runs", "1", "--json").json
    assert [block["runs_left"] for block in created["blocks"]] == [1, 1]
    planned = pft("plan", job, "--json").json
    assert planned["epsilon"] == reserved
    assert planned["epsilon_by_accountant"] == {"pld": None, "rdp": reserved}
    assert [block["fits"] for block in planned["blocks"]] == [True, True]
    assert f"at order {order}" in " ".join(pft("plan", job).out.split())

    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    report = json.loads((result.folder / "report.json").read_text())
    assert report["accounting"] == "filter"
    assert report["epsilon_by_accountant"] == {"pld": None, "rdp": reserved}
    assert report["block"]["epsilon"] == 8.0
    for block, share in zip(report["blocks"], built.shares, strict=True):
        assert block["mode"] == "filter"
        assert block["order"] == built.orders[share.block]
        whole = epsilon_of_units(share.rho_units, 1e-5, block["order"])
        assert block["run_epsilon"] == pytest.approx(whole, rel=1e-9)
    assert report["epsilon"] == max(b["run_epsilon"] for b in report["blocks"])
    page = (result.folder / "report.html").read_text()
    assert "not told" in page
    assert f"filter, order {order}" in page

    with opened() as ledger:
        # 16 of the 20 paid steps were made, 2 of the 3 paid looks.
        paid = rho_of(ledger, train.block, "training")
        assert paid.spent_rho_units == 16 * train.units_each
        assert paid.reserved_rho_units == 0
        shown = rho_of(ledger, looks.block, "evaluation")
        assert shown.spent_rho_units == 2 * looks.units_each
        (checked,) = verify(ledger).runs
        assert checked.epsilon == pytest.approx(report["epsilon"], rel=1e-12)

    runs = job.parent / "runs"
    said = pft("budget", "verify", "--runs", runs, "--json").json
    assert said["num_reports_checked"] == 1
    said = pft("budget", "show", "tiny-data/train", "--json").json["blocks"][0]
    assert said["filter"]["spent_fraction"] == pytest.approx(0.8, abs=1e-3)
    (row,) = said["runs"]
    assert (row["epsilon"], row["block_epsilon"]) == (reserved, 8.0)
    words = " ".join(pft("budget", "show", "tiny-data/train").out.split())
    assert "run epsilon" in words
    assert f"{paid.spent_rho_units / UNITS:.6g}" in words


def test_what_one_run_left_pays_for_part_of_the_next(job, monkeypatch):
    create_budget(job)
    PrivateTrainer(job).fit()
    with pytest.raises(BudgetError) as caught:
        PrivateTrainer(job).fit(new=True)
    assert caught.value.details["purpose"] == "training"
    small = ["training.phases.0.steps=1", "training.phases.1.steps=1"]
    small += ["privacy.epsilon=null", "privacy.noise_multiplier=3", "evaluation=null"]
    order = build_job(load_job(job), job.parent).orders["tiny-data/train"]
    with pytest.raises(PlanError, match=rf"filter\.order: {order}"):
        PrivateTrainer(
            job, overrides=[*small, f"privacy.filter={{order: {order + 1}}}"]
        ).fit(new=True)
    small.append(f"privacy.filter={{order: {order}}}")
    with opened() as ledger:
        left = rho_of(ledger, "tiny-data/train", "training").remaining_rho_units
    set_stage(monkeypatch)
    trainer = PrivateTrainer(job, overrides=small)
    assert trainer.built.shares[0].rho_units <= left
    assert trainer.fit(new=True).status == "completed"


def test_a_plan_job_is_refused_on_filter_blocks_and_the_other_way(job):
    create_budget(job)
    with pytest.raises(BlockModeError):
        PrivateTrainer(job, overrides=["privacy.accounting=plan"]).fit()
    plan = ["privacy.accounting=plan", "privacy.block=p/t", "evaluation.block=p/v"]
    create_budget(job, overrides=plan)
    with pytest.raises(BlockModeError):
        PrivateTrainer(job, overrides=["privacy.accounting=filter", *plan[1:]]).fit()


def test_a_crash_changes_nothing_that_is_reported(job, monkeypatch, tmp_path):
    create_budget(job)
    stage = set_stage(monkeypatch)
    stage.die_at.append(6)
    result = PrivateTrainer(job).fit()
    assert result.report["epsilon"] == max(
        b["run_epsilon"] for b in result.report["blocks"]
    )
    assert 7.99 < result.report["epsilon"] <= 8
    with opened() as ledger:
        spent = rho_of(ledger, "tiny-data/train", "training").spent_rho_units
        each = build_job(load_job(job), job.parent).shares[0].units_each
        assert spent == ledger.runs()[0].num_steps_charged * each
        assert spent > 16 * each
