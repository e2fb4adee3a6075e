"""Independent workers from the job file to the report, by the worker's own code."""

from __future__ import annotations

import json

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import PoissonGaussian, Repeat
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.config import build_job, load_job, read_job
from pft_ray.errors import ConfigError
from tests.contracts.stage import Stage, set_stage
from tests.e2e.refusals import pft
from tests.tiny_job import job_dict, write_job

SEQUENTIAL = {
    "privacy__mode": "sequential",
    "privacy__fault_reserve": 2,
    "cluster__workers": 2,
    "training__batch_size": 30,
}


def test_a_run_of_independent_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    job = write_job(tmp_path / "job", **SEQUENTIAL)
    plan = build_job(load_job(job), job.parent).plan
    event = Repeat(PoissonGaussian(0.1, plan.noise_multiplier), 2 * (16 + 2))
    spent = epsilon(event, 1e-5)
    assert 7.98 < spent <= 8
    assert plan.expected_batch_size == pytest.approx(60)

    said = pft("plan", job, "--json").json
    assert said["epsilon"] == spent
    assert said["sequential"]["num_events"] == 36
    assert said["sequential"]["extra_noise"] > 0
    assert "draw independently: 36 events" in " ".join(pft("plan", job).out.split())

    create_budget(job)
    set_stage(monkeypatch)
    assert PrivateTrainer(job).fit().status == "completed"
    (file,) = (tmp_path / "job" / "runs").glob("*/report.json")
    report = json.loads(file.read_text())
    assert report["independent_workers"] == 2
    assert report["epsilon_by_accountant"]["pld"] == spent


@pytest.mark.parametrize(
    "change",
    [
        {"cluster__workers": 1},
        {"training__noise_shares": 3},
        {"training__baseline": True, "data__public": True},
        {"privacy__owners": {"field": "sender", "members": []}},
    ],
)
def test_jobs_that_are_refused(change):
    read_job(job_dict(**SEQUENTIAL))
    with pytest.raises(ConfigError):
        read_job(job_dict(**(SEQUENTIAL | change)))


def test_independent_workers_may_be_absent_at_no_price(tmp_path, monkeypatch):
    """Each has the whole noise; who is absent releases nothing, and is paid for."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    job = write_job(tmp_path / "job", **SEQUENTIAL, cluster__tolerate_missing=1)
    said = pft("plan", job, "--json").json
    assert said["tolerance"]["noise_inflation"] == 1
    assert said["sequential"]["num_events"] == 36
    assert "the last ranks: no more noise" in " ".join(pft("plan", job).out.split())
    create_budget(job)
    set_stage(monkeypatch, Stage(absent=1))
    result = PrivateTrainer(job).fit()
    assert (result.status, result.report["tolerate_missing"]) == ("completed", 1)
