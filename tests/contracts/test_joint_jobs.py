"""Jobs declared together: one price, each continued by its own command."""

from __future__ import annotations

import shutil

import pytest
import yaml

from pft_ray.cluster.joint_runs import reserve_together
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import BudgetError, InputError
from pft_ray.ledger import Ledger, verify
from tests.contracts.stage import set_stage
from tests.e2e.refusals import pft
from tests.tiny_job import write_job


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Two jobs of unlike noise on the same blocks, with room for both together."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    changes = {"cluster__workers": 1, "privacy__epsilon": None}
    first = write_job(tmp_path / "a", **changes, privacy__noise_multiplier=2.0)
    job = yaml.safe_load(first.read_text())
    job["name"] = "second"
    job["privacy"]["noise_multiplier"] = 3.0
    second = first.with_name("second.yaml")
    second.write_text(yaml.safe_dump(job))
    create_budget(first, epsilon=6.0, delta=1e-4)
    return first, second


def opened(tmp_path):
    return Ledger.open(tmp_path / "home" / "ledger.db")


def test_both_run_within_one_price(jobs, tmp_path, monkeypatch):
    found = reserve_together(jobs)
    together = found["blocks"][0]["epsilon"]
    alone = [run["epsilon"] for run in found["runs"]]
    assert max(alone) < together < sum(alone)
    for job, run in zip(jobs, found["runs"], strict=True):
        set_stage(monkeypatch)
        result = PrivateTrainer(job).fit()
        assert (result.run_id, result.status) == (run["run_id"], "completed")
        assert result.report["blocks"][0]["run_epsilon"] <= together
        assert result.report["epsilon_by_accountant"]["pld"] in alone
    with opened(tmp_path) as ledger:
        block = ledger.block_status("tiny-data/train")
        assert block.reserved_epsilon == block.used_epsilon == together
        runs = {run.run_id: run for run in verify(ledger).runs}
        for run in found["runs"]:
            assert runs[run["run_id"]].num_steps_charged == 16


def test_together_or_not_at_all(jobs, tmp_path):
    with opened(tmp_path) as ledger:
        position = ledger.position()
        runs = jobs[0].parent / "runs"
        with pytest.raises(BudgetError):
            reserve_together([jobs[0]] * 12)
        assert ledger.position() == position
        assert not any(runs.iterdir())
        with pytest.raises(InputError, match="One job"):
            reserve_together([jobs[0]])


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("privacy", "block", "other/train", "not on the same blocks"),
        ("privacy", "accounting", "filter", "filter blocks"),
    ],
)
def test_jobs_that_are_not_alike_are_refused(jobs, section, key, value, says):
    first, second = jobs
    job = yaml.safe_load(second.read_text())
    job[section][key] = value
    second.write_text(yaml.safe_dump(job))
    with pytest.raises(InputError, match=says):
        reserve_together([first, second])


def test_the_command_line_says_what_both_cost(jobs, tmp_path):
    first, second = jobs
    answer = pft("budget", "reserve", first, "--together", second)
    assert answer.code == 0, answer.err
    assert "for all of them" in answer.out
    shown = pft("budget", "show", "tiny-data/train", "--json").json["blocks"][0]
    assert all(run["together_with"] for run in shown["runs"])
    refused = pft("budget", "reserve", first, "--together", second, "--wait", "--json")
    assert refused.code == 2
    run = shown["runs"][0]["run_id"]
    assert pft("budget", "release", run).code == 0
    with opened(tmp_path) as ledger:
        assert {r.status for r in ledger.runs()} == {"released"}
    shutil.rmtree(first.parent / "runs")
