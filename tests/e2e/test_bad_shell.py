"""Bad inputs through a real shell: exit codes, one JSON object, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.refusals import PRIVATE

PROGRAM = str(Path(sys.executable).with_name("pft"))


def shell(bench, *arguments, **environment):
    """Runs the installed program as a user would."""
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        cwd=bench.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refusal(done, code):
    """The error of a refusal: exactly one JSON object on stdout."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not PRIVATE.search(done.stdout + done.stderr)
    return json.loads(done.stdout)["error"]


def test_unknown_key(bench):
    job = bench.new_job(training__batchsize=3)
    error = refusal(shell(bench, "plan", job, "--json"), 2)
    assert error["code"] == "bad-config"
    assert error["fix"] == "Did you mean 'batch_size'?"


def test_words_go_to_stderr(bench):
    done = shell(bench, "plan", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first == "error: There is no job file nowhere.yaml."
    assert second == "       Check the path, or run `pft init DATA`."


def test_budget_refusal(bench):
    before = bench.position()
    job = bench.new_job(privacy__epsilon=17)
    error = refusal(shell(bench, "train", job, "--json"), 3)
    assert error["code"] == "budget-refused"
    assert bench.position() == before


def test_damaged_data(bench):
    before = bench.position()
    name = bench.new_file("d.csv", "id,text,label\nr1,secret word1,no\nr2,secret\n")
    job = bench.new_job(data__path=name, data__registration="new-data")
    error = refusal(shell(bench, "budget", "create", job, "--json"), 2)
    assert error["details"] == {"line": 3}
    assert bench.position() == before


def test_file_that_is_no_ledger(bench):
    name = bench.new_file("text.db", "these are no pages of a database " * 99)
    error = refusal(shell(bench, "budget", "verify", "--ledger", name, "--json"), 4)
    assert error["details"]["page"] == 1


def test_wrong_usage(bench):
    error = refusal(shell(bench, "plan", "--steps", "many", "--json"), 2)
    assert error["fix"] == "See `pft plan --help`."
    done = shell(bench, "plan", "--steps", "many")
    assert done.returncode == 2
    assert "Usage: pft plan" in done.stderr


def test_a_closed_pipe_is_quiet(bench):
    """`pft schema | head -1` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [PROGRAM, "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_home_that_cannot_be_written(bench):
    """The ledger's folder is a file: named, not a traceback."""
    file = str(bench.folder / "data.csv")
    create = ["budget", "create", "job.yaml", "--json"]
    error = refusal(shell(bench, *create, PFT_HOME=file), 1)
    assert error["code"] == "ledger-storage"
    assert "cannot be created" in error["message"]
