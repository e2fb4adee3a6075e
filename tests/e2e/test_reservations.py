"""``pft budget reserve``, ``queue``, ``leave``, ``release``: words and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pft_ray.ledger import Ledger
from tests.e2e.refusals import pft
from tests.tiny_job import write_job


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A tiny job with room for two runs on a ledger of its own."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path / "job", rows=200)
    answer = pft("budget", "create", path, "--runs", 2)
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def ledger(job, tmp_path):
    with Ledger.open(tmp_path / "home" / "ledger.db") as opened:
        yield opened


def refused(ledger, code, word, *arguments):
    """A verb has to end with the code and word, and to leave the ledger alone."""
    before = ledger.position()
    answer = pft(*arguments, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (code, word), answer.out
    assert answer.json["error"]["fix"]
    assert ledger.position() == before
    return answer.json["error"]


def test_reserve_makes_the_run_that_train_will_continue(job, ledger):
    answer = pft("budget", "reserve", job, "--expires", "30m")
    assert answer.code == 0, answer.err
    (run,) = ledger.runs()
    assert f"Run {run.run_id}: reserved." in answer.out
    assert (run.status, run.time_limit_s) == ("reserved", 1800.0)
    folder = job.parent / "runs" / run.run_id
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["plan_digest"] == run.plan_digest
    dry = pft("train", job, "--dry-run", "--json")
    assert dry.json["would_resume"] is True


def test_json_names_run_status_and_blocks(job, ledger):
    answer = pft("budget", "reserve", job, "--json")
    (run,) = ledger.runs()
    assert answer.json["run_id"] == run.run_id
    assert answer.json["status"] == "reserved"
    assert answer.json["expires_s"] is None
    left = {row["name"]: row["epsilon_left"] for row in answer.json["blocks"]}
    assert left == {b.name: b.remaining_epsilon for b in ledger.blocks()}


@pytest.mark.parametrize(
    "text", ["0", "-5", "0m", "soon", "nan", "inf", "1e3", "5y", "", "true", "999999d"]
)
def test_times_without_sense_are_refused(job, ledger, text):
    refused(ledger, 2, "bad-input", "budget", "reserve", job, f"--expires={text}")
    assert not list((job.parent / "runs").glob("*/plan.json"))


def test_a_full_block_refuses_and_leaves_no_folder(job, ledger):
    for _ in range(2):
        assert pft("budget", "reserve", job).code == 0
    error = refused(ledger, 3, "budget-refused", "budget", "reserve", job)
    assert "fits_num_steps" in error["details"]
    assert len(list((job.parent / "runs").glob("*/plan.json"))) == 2


def _listen():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(*arguments) -> subprocess.Popen:
    """Starts a verb that waits, in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pft_ray.cli.main import run; run()",
            *map(str, arguments),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job ignores Ctrl-C, and so would its children.
        preexec_fn=_listen,
    )


def until(condition, what):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


def fill(job) -> list[str]:
    return [
        pft("budget", "reserve", job, "--json").json["run_id"]
        for _ in range(2)
    ]  # fmt: skip


def test_who_waits_gets_what_is_given_back(job, ledger):
    first, _ = fill(job)
    waiter = wait("budget", "reserve", job, "--wait", "--json")
    until(ledger.queue.waiting, "nobody waited")
    answer = pft("budget", "queue", "--json").json
    (row,) = answer["waiting"]
    assert (answer["order"], row["place"]) == ("fcfs", 1)
    assert row["dominant_share"] == 0.5
    assert row["waits_for"]["block"] in [b.name for b in ledger.blocks()]
    words = pft("budget", "queue").out
    assert row["run_id"] in words
    assert f"epsilon {row['waits_for']['missing']:.4g} of block" in words
    assert {b["num_waiting"] for b in pft("budget", "show", "--json").json["blocks"]} \
        == {1}  # fmt: skip
    refused(ledger, 2, "bad-input", "budget", "release", row["run_id"])
    assert pft("budget", "release", first).code == 0
    out, err = waiter.communicate(timeout=90)
    assert waiter.returncode == 0, err
    assert json.loads(out)["run_id"] == row["run_id"]
    assert ledger.run_status(row["run_id"]).status == "reserved"


@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        (["budget", "reserve", "--wait"], signal.SIGINT, 130),
        (["budget", "reserve", "--wait"], signal.SIGTERM, 143),
        (["train", "--new", "--wait"], signal.SIGINT, 130),
    ],
)
def test_an_interrupt_leaves_the_queue_cleanly(job, ledger, verb, number, code):
    fill(job)
    waiter = wait(*verb, job)
    until(ledger.queue.waiting, "nobody waited")
    (row,) = ledger.queue.waiting()
    time.sleep(0.5)
    waiter.send_signal(number)
    _, err = waiter.communicate(timeout=90)
    assert waiter.returncode == code, err
    assert "place 1" in err
    assert ledger.queue.waiting() == []
    assert ledger.run_status(row.run_id).status == "left"
    assert not (job.parent / "runs" / row.run_id).exists()


def test_leave_and_settling_twice(job, ledger):
    first, second = fill(job)
    waiter = wait("budget", "reserve", job, "--wait", "--json")
    until(ledger.queue.waiting, "nobody waited")
    (row,) = ledger.queue.waiting()
    answer = pft("budget", "leave", row.run_id, "--json")
    assert answer.json == {"run_id": row.run_id, "num_waiting": 0}
    out, _ = waiter.communicate(timeout=90)
    assert waiter.returncode == 2
    assert json.loads(out)["error"]["code"] == "cannot-resume"
    refused(ledger, 2, "already-settled", "budget", "leave", row.run_id)
    refused(ledger, 2, "unknown-run", "budget", "leave", "nobody")
    refused(ledger, 2, "unknown-run", "budget", "release", "nobody")
    assert pft("budget", "release", first).code == 0
    refused(ledger, 2, "already-settled", "budget", "release", first)
    epoch = ledger.take_epoch(second)
    attempt = ledger.open_attempt(second, epoch, 0, "start")
    ledger.charge_steps(second, epoch, attempt, 0, 1, "0" * 32)
    refused(ledger, 3, "budget-refused", "budget", "release", second)


def test_nobody_overtakes_without_waiting(job, ledger):
    first, _ = fill(job)
    plan, envelopes = (
        ledger.run_status(first).plan,
        ledger.run_status(first).envelopes,
    )
    ledger.queue.request("elsewhere", plan, envelopes)
    assert pft("budget", "release", first).code == 0
    error = refused(ledger, 3, "must-wait", "budget", "reserve", job)
    assert error["details"]["num_waiting"] == 1
    # Whoever comes next lets the first in line go first.
    waiter = wait("budget", "reserve", job, "--wait")
    until(lambda: ledger.run_status("elsewhere").status == "reserved", "not admitted")
    waiter.send_signal(signal.SIGINT)
    waiter.communicate(timeout=90)


def test_the_order_is_set_and_shown(job, ledger):
    answer = pft("budget", "queue", "--order", "dpf", "--dpf-n", 10)
    assert answer.code == 0, answer.err
    assert "dpf, N 10" in answer.out
    assert "Nobody waits." in answer.out
    assert ledger.queue.order().dpf_n == 10
    # One arrival unlocks a tenth of each block, a run needs half of it.
    error = refused(ledger, 3, "must-wait", "budget", "reserve", job)
    assert error["details"]["waits_for_block"]
    for wrong in (["--order", "dpf"], ["--dpf-n", "3"], ["--order", "lifo"],
                  ["--order", "dpf", "--dpf-n", "-1"],
                  ["--order", "fcfs", "--dpf-n", "2"]):  # fmt: skip
        refused(ledger, 2, "bad-input", "budget", "queue", *wrong)
    assert pft("budget", "queue", "--order", "fcfs", "--json").json["dpf_n"] == 0
    assert pft("budget", "reserve", job).code == 0
