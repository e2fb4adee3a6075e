"""Clusters that cannot hold a job, or are not there: said within seconds."""

from __future__ import annotations

import time

from pft_ray.ledger import Ledger
from tests.e2e.refusals import pft
from tests.tiny_job import write_job


def test_a_cluster_that_is_too_small_is_refused(fresh_home, job_folder):
    job = write_job(job_folder, rows=200, cluster__placement_timeout_s=1.0)
    assert pft("budget", "create", job).code == 0
    start = time.monotonic()
    sets = ["--set", "cluster.workers=50", "--set", "cluster.cpus_per_worker=1"]
    answer = pft("train", job, "--address", "auto", *sets, "--json")
    assert time.monotonic() - start < 60
    assert answer.code == 2, answer.out
    error = answer.json["error"]
    assert error["code"] == "cannot-place"
    assert "50 workers of 1 CPUs; the cluster has 4 CPUs" in error["message"]
    assert "cluster.workers" in error["fix"]
    with Ledger.open(fresh_home / "ledger.db", keys_dir=fresh_home / "keys") as ledger:
        assert all(run.num_steps_charged == 0 for run in ledger.runs())
