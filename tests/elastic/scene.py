"""An autoscaling cluster of this machine, and runs on it that are watched and hit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from pft_ray.accounting.accountants import epsilon as epsilon_of
from pft_ray.assurance.claims import collect_claims
from pft_ray.cluster.cluster_file import load_local_nodes
from pft_ray.cluster.nodes import AutoscalingNodes
from pft_ray.cluster.registration import create_budget
from pft_ray.config import build_job, load_job, read_job
from pft_ray.ledger import verify
from pft_ray.ledger.home import ledger_location
from tests.tiny_job import write_job

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "clusters" / "autoscaling-local.yaml"
RUN_S = 240.0
ELASTIC = {
    "min_workers": 1,
    "max_workers": 2,
    "node_start_s": 5.0,
    "resize_s": 5.0,
    "min_interval_s": 1.0,
}


@contextmanager
def autoscaling_cluster(home: Path, more: dict[str, str] | None = None):
    """Starts the cluster; its nodes and drivers import the tests, too."""
    variables = (more or {}) | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PFT_HOME": str(home),
    }
    nodes = AutoscalingNodes(load_local_nodes(LOCAL), variables=variables)
    with nodes:
        yield nodes


def elastic_job(folder: Path, *, elastic=None, steps=16, **changes) -> Path:
    """Writes a tiny elastic job and its budget; the ledger is PFT_HOME's."""
    from tests.tiny_job import job_dict

    phases = job_dict()["training"]["phases"]
    fields = {
        "training__phases": [phase | {"steps": steps // 2} for phase in phases],
        "cluster__cpus_per_worker": 1,
        "cluster__workers": 1,
        "cluster__file": str(LOCAL),
        "cluster__regions": ["local-a"],
        "cluster__elastic": ELASTIC | (elastic or {}),
    }
    job = write_job(folder, **(fields | changes))
    create_budget(job, runs=3)
    return job


@dataclass
class Run:
    """A run in a driver of its own."""

    job: Path
    address: str
    process: subprocess.Popen
    out: Path

    @classmethod
    def start(cls, job: Path, nodes: AutoscalingNodes, pause_s: float = 0.5) -> Run:
        out = job.parent / "end.json"
        out.unlink(missing_ok=True)
        out.with_suffix(".status").unlink(missing_ok=True)
        log = (job.parent / "driver.log").open("a")
        arguments = [str(job), nodes.address, str(out), str(pause_s)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.elastic.driver", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        return cls(job, nodes.address, process, out)

    @property
    def status(self) -> dict:
        """The newest status that the driver has seen; empty before the first."""
        place = self.out.with_suffix(".status")
        return json.loads(place.read_text()) if place.exists() else {}

    @property
    def folder(self) -> Path:
        (folder,) = (
            p
            for p in (self.job.parent / "runs").iterdir()
            if (p / "plan.json").exists()
        )
        return folder

    @property
    def events(self) -> list[dict]:
        place = self.folder / "events.jsonl"
        return [json.loads(line) for line in place.read_text().splitlines()]

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]

    def wait_for(self, condition, what: str, timeout_s: float = RUN_S):
        """Polls while the driver lives; returns the condition's value."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, f"it ended before {what}\n{self.log}"
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come true\n{self.log}")

    def to_the_end(self, timeout_s: float = RUN_S) -> dict:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run does not end\n{self.log}") from None
        finally:
            self.close()
        assert self.out.exists(), self.log
        return json.loads(self.out.read_text())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        events = self.events[-12:] if (self.job.parent / "runs").exists() else []
        driver = (self.job.parent / "driver.log").read_text()[-3000:]
        return "\n".join([driver, *(json.dumps(e)[:300] for e in events)])

    @property
    def operator(self) -> dict:
        return json.loads((self.folder / "operator.json").read_text())


def assert_sound(run: Run, end: dict) -> None:
    """What holds after every run, whatever became of its nodes."""
    built = build_job(load_job(run.job), run.job.parent)
    notes = run.operator
    assert notes["num_steps_released"] <= notes["num_steps_charged"]
    assert notes["num_steps_charged"] <= built.plan.num_steps_max
    found = verify(ledger_location(None), collect_claims(built.output_dir))
    assert "complete up to row" in found.words
    (check,) = (r for r in found.runs if r.run_id == run.folder.name)
    assert check.num_steps_charged == notes["num_steps_charged"]
    if end["report"] is not None:
        assert end["report"]["epsilon"] == check.epsilon


def worker_nodes(run: Run) -> list[str]:
    """Returns the nodes that hold workers, as the last decision saw them."""
    nodes = run.status.get("scaling", {}).get("nodes", [])
    return [node["node_id"] for node in nodes if node["workers"]]


def rosters(run: Run) -> list[list[int]]:
    return [event["num_workers"] for event in run.of("resized")]


def fixed_epsilon(run: Run) -> float:
    """Returns what a run of a fixed size reports, whose plan is priced anew."""
    content = yaml.safe_load(run.job.read_text())
    most = content["cluster"]["elastic"]["max_workers"]
    content["cluster"] = {"workers": most}
    plan = build_job(read_job(content), run.job.parent).plan
    assert plan == build_job(load_job(run.job), run.job.parent).plan
    look = plan.evaluation
    return max(epsilon_of(plan.event, plan.delta), epsilon_of(look.event, look.delta))
