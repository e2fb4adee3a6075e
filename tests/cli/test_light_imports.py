"""Verbs that need no model must not import torch, Ray or their company."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.tiny_job import job_dict, make_rows, write_csv

HEAVY = (
    *("torch", "ray", "transformers", "peft", "safetensors", "pyarrow", "matplotlib"),
    *("accelerate", "pandas", "opacus"),
)
# Runs verbs one after the other; says which heavy modules are there after each.
SCRIPT = """
import contextlib, io, json, sys
from pft_ray.cli.main import run
HEAVY, COMMANDS = json.load(sys.stdin)
found = []
for command in COMMANDS:
    sys.argv = ["pft", *command]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run()
    except SystemExit as end:
        code = end.code
    found.append([code, [name for name in HEAVY if name in sys.modules]])
print(json.dumps(found))
"""
REPORT = {
    "run_id": "run",
    "epsilon": 3.0,
    "target_epsilon": 3,
    "delta": 1e-5,
    "unit": "record",
    "relation": "add_remove",
    "relation_domain": "raw",
    "guarantee_scope": "fine-tuning data",
    "noise_multiplier": 1.0,
    "sample_rate": 0.1,
    "num_steps_max": 20,
    "utility": {"metric": "accuracy", "private": 0.9},
}
NUMBERS = [
    "--size",
    "1000",
    "--batch-size",
    "10",
    "--steps",
    "10",
    "--noise-multiplier",
    "1",
]
COMMANDS = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["schema"],
    ["doctor"],
    ["plan", *NUMBERS],
    ["plan", "job.yaml"],
    ["init", "data.csv", "--out", "new.yaml"],
    ["budget", "create", "job.yaml"],
    ["budget", "reserve", "job.yaml", "--expires", "1h"],
    ["budget", "queue"],
    ["budget", "show"],
    ["budget", "history"],
    ["budget", "verify"],
    ["budget", "export", "ledger.jsonl"],
    ["budget", "import-check", "ledger.jsonl"],
    ["runs"],
    ["report", "run", "--runs", "elsewhere"],
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Exit code and heavy modules after each command."""
    folder = tmp_path_factory.mktemp("light")
    write_csv(folder / "data.csv", make_rows(100))
    job = job_dict(privacy__epsilon=None, privacy__noise_multiplier=1.0)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run = folder / "elsewhere" / "run"
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    (run / "report.json").write_text(json.dumps(REPORT))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([HEAVY, COMMANDS]),
        env=os.environ | {"PFT_HOME": str(folder / "home")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(map(" ".join, COMMANDS), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", map(" ".join, COMMANDS))
def test_nothing_heavy_is_imported(seen, command):
    _, modules = seen[command]
    assert modules == []


def test_the_commands_did_their_work(seen):
    failed = {command for command, (code, _) in seen.items() if code}
    assert failed <= {"doctor"}  # this machine may be short of space


def test_the_spy_sees_a_heavy_import(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([HEAVY, [["init", "x.parquet"]]]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert json.loads(done.stdout) == [[2, ["pyarrow"]]]
