"""Elastic runs on a real autoscaling cluster: out, in, and nodes that are lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.elastic.scene import (
    ROOT,
    Run,
    assert_sound,
    autoscaling_cluster,
    elastic_job,
    fixed_epsilon,
    rosters,
    worker_nodes,
)
from tests.kills.lost_nodes import kill_node


@pytest.fixture(scope="module")
def cluster(home, tmp_path_factory):
    """With a ledger of its own; HOME, where Ray's token is, stays that of the run."""
    saved = os.environ["PFT_HOME"]
    os.environ["PFT_HOME"] = str(tmp_path_factory.mktemp("elastic"))
    with autoscaling_cluster(Path(os.environ["PFT_HOME"])) as nodes:
        yield nodes
    os.environ["PFT_HOME"] = saved


def lever(cluster, *arguments):
    command = [sys.executable, "-m", "tests.elastic.levers", cluster.address]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_out_and_in_again_makes_no_step_twice(cluster, tmp_path):
    """Two ways in: a notice takes a node away, and the policy gives one back."""
    policy = "tests.elastic.policies:breathing"
    job = elastic_job(tmp_path / "job", steps=36, elastic={"policy": policy})
    run = Run.start(job, cluster)
    try:
        run.wait_for(lambda: worker_nodes(run), "the start")
        run.wait_for(lambda: run.of("resized"), "the second worker")
        run.wait_for(lambda: len(worker_nodes(run)) == 2, "two nodes with workers")
        leaving = worker_nodes(run)[1]
        assert lever(cluster, "drain", leaving, "120")
        run.wait_for(lambda: len(rosters(run)) == 3, "another second worker")
        run.wait_for(lambda: len(worker_nodes(run)) == 2, "two nodes with workers")
        given = worker_nodes(run)[1]
        run.wait_for(lambda: len(rosters(run)) == 4, "the policy's shrink")
        there = lever(cluster, "nodes")
        end = run.to_the_end()
    finally:
        run.close()
    assert end["status"] == "completed"
    assert rosters(run) == [[1, 2], [2, 1], [1, 2], [2, 1]]
    assert leaving not in there
    assert given not in there, "a node that the run gave back ends itself"
    codes = [
        event["code"] for event in run.of("scaling") if event["action"] == "shrink"
    ]
    assert codes == ["spot-notice", "near-the-end"]
    notes = run.operator
    assert notes["attempts"] == 1
    assert notes["num_steps_charged"] == notes["num_steps_released"] == 36
    assert [resize["to"] for resize in notes["resizes"]] == [2, 1, 2, 1]
    assert (run.folder / "scaling.svg").stat().st_mode & 0o777 == 0o600
    assert end["report"]["epsilon"] == fixed_epsilon(run)
    assert_sound(run, end)


def test_a_node_lost_without_notice_is_paid_from_the_reserve(cluster, tmp_path):
    """Also under a policy that raises: the run holds its size and goes on."""
    policy = "tests.elastic.policies:raising"
    job = elastic_job(
        tmp_path / "job",
        steps=20,
        elastic={"policy": policy},
        cluster__workers=2,
        privacy__fault_reserve=12,
    )
    run = Run.start(job, cluster)
    try:
        run.wait_for(lambda: run.status.get("step", 0) >= 6, "some steps")
        lost, at = worker_nodes(run)[0], run.status["num_steps_charged"]
        assert kill_node(cluster, lost)
        run.wait_for(lambda: run.status["attempts"] > 1, "the next attempt")
        end = run.to_the_end()
    finally:
        run.close()
    assert end["status"] == "completed"
    notes = run.operator
    assert notes["attempts"] == 2
    assert at <= notes["num_steps_charged"] <= 20 + 12
    assert notes["num_steps_in_model"] == 20
    reasons = [event["reason"] for event in run.of("attempt_opened")]
    assert reasons == ["start", "node-loss"]
    codes = {event["code"] for event in run.of("scaling")}
    assert "policy-failed" in codes
    assert_sound(run, end)
