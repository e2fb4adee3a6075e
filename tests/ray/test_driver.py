"""The command line with a Ray of its own: killed drivers, signals, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pft_ray.ledger import Ledger
from tests.ray.conftest import end_processes, wait_until
from tests.tiny_job import write_job


@pytest.fixture
def shell(tmp_path, job_folder, home):
    """Runs `pft` as a user would, with a home of its own."""
    job = write_job(job_folder, cluster__workers=2)
    environment = os.environ | {
        "PFT_HOME": str(tmp_path / "pft"),
        "PYTHONPATH": str(Path.cwd()),
        "OMP_NUM_THREADS": "1",
    }
    shell = Shell(job, environment, tmp_path / "pft" / "ledger.db")
    shell.run("budget", "create", str(job), "--runs", "2")
    yield shell
    end_processes(shell.seen.values())


class Shell:
    def __init__(self, job: Path, environment: dict, ledger: Path) -> None:
        self.job = job
        self.environment = environment
        self.ledger = ledger
        self.seen: dict[int, psutil.Process] = {}

    @property
    def runs_dir(self) -> Path:
        return self.job.parent / "runs"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from pft_ray.cli.main import run; run()"] + [
            str(argument) for argument in arguments
        ]

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            cwd=self.job.parent,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def start(self, *arguments: str) -> psutil.Popen:
        return psutil.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.job.parent,
        )

    def record(self, process: psutil.Popen) -> None:
        """Remembers the process tree: what outlives a killed driver is ended."""
        for child in process.children(recursive=True):
            self.seen[child.pid] = child

    def status(self):
        if not self.ledger.exists():
            return None
        with Ledger.open(self.ledger, keys_dir=self.ledger.parent / "keys") as ledger:
            runs = ledger.runs()
            return runs[-1] if runs else None

    def wait_for_steps(self, process: psutil.Popen, count: int) -> None:
        def charged():
            self.record(process)
            assert process.poll() is None, process.communicate()
            status = self.status()
            return (
                status is not None
                and status.status == "running"
                and status.num_steps_charged >= count
            )

        wait_until(charged, 120, f"{count} charged steps")


def test_a_killed_driver_is_resumed_by_the_same_command(shell):
    process = shell.start("train", shell.job)
    shell.wait_for_steps(process, 6)
    process.kill()
    process.wait(10)
    end_processes(shell.seen.values())
    before = shell.status()
    assert before.num_steps_charged >= 6

    done = shell.run("train", shell.job, "--json")
    result = json.loads(done.stdout)
    assert result["resumed"]
    assert result["run_id"] == before.run_id
    assert result["status"] == "completed"
    after = shell.status()
    assert after.num_steps_charged >= before.num_steps_charged
    assert after.num_attempts > before.num_attempts
    found = json.loads(
        shell.run("budget", "verify", "--runs", shell.runs_dir, "--json").stdout
    )
    assert found["num_reports_checked"] == 1
    (run,) = found["runs"]
    assert run["epsilon"] == pytest.approx(result["report"]["epsilon"], abs=1e-9)
    assert run["num_steps_charged"] <= run["num_steps_max"]


@pytest.mark.timeout(420)
def test_a_rolled_back_ledger_is_refused_and_the_budget_holds_runs(shell, tmp_path):
    """One run; an older copy of the ledger put back; the third run does not fit."""
    shutil.copy(shell.ledger, tmp_path / "old.db")
    first = json.loads(shell.run("train", shell.job, "--json").stdout)
    assert first["status"] == "completed"

    kept = tmp_path / "kept"
    kept.mkdir()
    for path in shell.ledger.parent.glob("ledger.db*"):
        shutil.move(path, kept / path.name)
    shutil.copy(tmp_path / "old.db", shell.ledger)
    done = shell.run("train", shell.job, "--json", expect=4)
    assert json.loads(done.stdout)["error"]["code"] == "ledger-behind"
    shell.run("budget", "verify", "--runs", shell.runs_dir, expect=4)

    for path in shell.ledger.parent.glob("ledger.db*"):
        path.unlink()
    for path in kept.iterdir():
        shutil.move(path, shell.ledger.parent / path.name)
    second = shell.start("train", shell.job, "--json")
    shell.wait_for_steps(second, 8)
    second.send_signal(signal.SIGINT)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 130, output + errors
    assert json.loads(output)["status"] == "interrupted"

    done = shell.run("train", shell.job, "--new", "--json", expect=3)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "budget-refused"
    assert error["details"]["remaining_epsilon"] == 0
    assert len([p for p in shell.runs_dir.iterdir() if p.is_dir()]) == 2
