"""Options, runs and files on the command line that cannot be used."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.e2e.refusals import PRIVATE, pft

GOOD = {
    "--size": 60000,
    "--batch-size": 256,
    "--noise-multiplier": 1,
    "--steps": 2344,
}


def calculator(**changes):
    """Options of the calculator, some changed; None removes one."""
    named = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    options = {k: v for k, v in (GOOD | named).items() if v is not None}
    return [word for pair in options.items() for word in pair]


NUMBERS = {
    "nothing": ([], "Neither a job file nor --size and --steps", "pft plan JOB.yaml"),
    "no-size": (calculator(size=None), "Neither a job file nor --size", "--size"),
    "no-steps": (calculator(steps=None), "Neither a job file nor --size", "--steps"),
    "no-rate": (calculator(batch_size=None), "Neither of --sample-rate", "exactly one"),
    "two-rates": (calculator(sample_rate=0.1), "Both of --sample-rate", "exactly one"),
    "no-noise": (calculator(noise_multiplier=None), "Neither of --noise", "exactly"),
    "two-targets": (calculator(epsilon=1), "Both of --noise-multiplier", "exactly one"),
    "size-zero": (calculator(size=0), "--size is 0", "Give 1 to"),
    "steps-zero": (calculator(steps=0), "--steps is 0", "Give 1 to"),
    "batch-zero": (calculator(batch_size=0), r"--batch-size is 0\.0", "Give"),
    "batch-above-size": (calculator(batch_size=60001), "60001", "to 60000"),
    "batch-nan": (calculator(batch_size="nan"), "--batch-size is nan", "Give"),
    "rate-zero": (calculator(batch_size=None, sample_rate=0), r"rate is 0\.0", "to 1"),
    "rate-above": (calculator(batch_size=None, sample_rate=2), r"is 2\.0", "to 1"),
    "noise-zero": (calculator(noise_multiplier=0), r"is 0\.0", "0.01 to"),
    "noise-huge": (calculator(noise_multiplier=1e300), r"1e\+300", "0.01 to"),
    "noise-inf": (calculator(noise_multiplier="inf"), "is inf", "0.01 to"),
    "epsilon-zero": (
        calculator(noise_multiplier=None, epsilon=0),
        r"--epsilon is 0\.0",
        "Give",
    ),
    "epsilon-nan": (calculator(noise_multiplier=None, epsilon="nan"), "is nan", "Give"),
    "delta-zero": (calculator(delta=0), r"--delta is 0\.0", "Give"),
    "delta-one": (calculator(delta=1), "delta 1 is not below 1/n", "below 1.67e-05"),
    "delta-above-1/n": (calculator(delta=1e-4), "not below 1/n", "below 1.67e-05"),
    "reserve-negative": (calculator(fault_reserve=-1), "reserve is -1", "Give 0 to"),
    "sets-without-job": ([*calculator(), "--set", "a=1"], "--set is given", "job file"),
    "ledger-without-job": ([*calculator(), "--ledger", "x"], "--ledger is", "job file"),
    "job-and-numbers": (
        ["job.yaml", "--epsilon", 0],
        "job file and --epsilon",
        "--set",
    ),
    "job-and-delta": (["job.yaml", "--delta", 1e-6], "job file and --delta", "--set"),
}


@pytest.mark.parametrize("case", NUMBERS.values(), ids=NUMBERS)
def test_calculator_refuses(bench, case):
    options, says, fix = case
    bench.refused("plan", *options, says=says, fix=fix)


USAGE = {
    "not-a-number": (["plan", "--steps", "many"], "'--steps'"),
    "unknown-option": (["plan", "--stepz", "3"], "No such option: --stepz"),
    "no-job": (["train"], "Missing argument 'JOB'"),
    "unknown-verb": (["trian"], "No such command 'trian'"),
    "unknown-budget-verb": (["budget", "crate"], "No such command 'crate'"),
    "no-out": (["export", "run"], "Missing argument 'OUT'"),
}


@pytest.mark.parametrize("case", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_words_or_one_json_object(bench, case):
    arguments, says = case
    bench.refused(*arguments, says=says, fix=r"See `pft.* --help`")
    plain = pft(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert says in plain.err
    assert "Usage: pft" in plain.err


def test_options_that_contradict_one_another_are_refused(bench):
    train = ["train", bench.job, "--resume", "x"]
    bench.refused(*train, "--new", says="--resume and --new", fix="one of them")
    bench.refused(*train, "--dry-run", says="--resume and --dry-run", fix="one of")


def test_more_workers_than_cpus_are_refused_before_ray_starts(bench):
    import ray

    train = ["train", bench.job, "--set", "cluster.workers=200"]
    error = bench.refused(*train, says="200 workers .* machine has", fix="--address")
    assert error["code"] == "cannot-place"
    bench.refused(*train, "--dry-run", says="200 workers", fix="cluster.workers")
    assert not ray.is_initialized()


ADDRESSES = {
    "nobody-listens": ("127.0.0.1:1", "127.0.0.1:1: Connection refused"),
    "client": ("ray://127.0.0.1:1", "ray://127.0.0.1:1: Connection refused"),
    "no-such-port": ("127.0.0.1:99999", "127.0.0.1:99999: "),
}


@pytest.mark.parametrize("case", ADDRESSES.values(), ids=ADDRESSES)
def test_a_cluster_that_is_not_there_is_refused_at_once(bench, case):
    address, says = case
    train = ["train", bench.job, "--address", address]
    bench.refused(*train, says=says, fix="local Ray")
    job = bench.new_job(cluster__address=address)
    bench.refused("train", job, "--dry-run", says=says, fix="local Ray")


def test_output_that_cannot_hold_runs_is_refused(bench):
    job = bench.new_job(output="data.csv/runs")
    bench.refused("train", job, says="data.csv is no folder", fix="output")


@pytest.mark.parametrize("verb", ["report", "predict", "export"])
def test_unknown_runs_are_refused(bench, verb):
    extra = {"report": [], "predict": ["some text"], "export": ["new-folder"]}[verb]
    bench.refused(verb, "typo", *extra, says="no run 'typo' in 'runs'", fix="pft runs")
    bench.refused(verb, "", *extra, says="no run ''", fix="pft runs")
    assert not Path("new-folder").exists()


def test_unknown_run_to_resume_is_refused(bench):
    bench.refused("train", bench.job, "--resume", "typo", says="typo", fix=".")


@pytest.fixture
def run_folder(bench):
    """A run that released nothing: only its plan is there."""
    folder = bench.folder / "runs" / "early"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text("{}")
    yield folder
    for path in folder.iterdir():
        path.unlink()


def test_runs_that_released_nothing_are_refused(bench, run_folder):
    bench.refused("report", "early", says="no report.json", fix="again to resume")
    bench.refused("export", "early", "out", says="released no model", fix="again")
    bench.refused("predict", "early", "a text", says="plan.json .* lacks", fix="file")
    (run_folder / "plan.json").write_text("{")
    bench.refused("predict", "early", "a text", says="no readable plan", fix="folder")


def test_damaged_reports_are_refused(bench, run_folder):
    report = run_folder / "report.json"
    for content in ("{", "[1]", "7"):
        report.write_text(content)
        bench.refused("report", "early", says="not a JSON object", fix="Restore")
    report.write_text(json.dumps({"run_id": "early"}))
    plain = pft("report", "early")
    assert plain.code == 2
    assert "lacks fields of a report" in plain.err


def test_export_never_writes_over_anything(bench, run_folder):
    full = bench.folder / "full"
    full.mkdir(exist_ok=True)
    (full / "keep.txt").write_text("mine")
    bench.refused("export", "early", full, says="not empty", fix="new folder")
    bench.refused("export", "early", "data.csv", says="is a file", fix="new folder")
    assert [path.name for path in full.iterdir()] == ["keep.txt"]


def test_texts_to_predict_are_refused(bench, run_folder, monkeypatch):
    predict = ["predict", "early"]
    bench.refused(*predict, says="no text", fix="--file")
    both = [*predict, "text", "--file", "data.csv"]
    bench.refused(*both, says="given together", fix="one text a line")
    bench.refused(*predict, "--file", "none.txt", says="cannot be read", fix="path")
    blank = bench.new_file("blank.txt", "\n \n")
    bench.refused(*predict, "--file", blank, says="holds no text", fix="one text")
    latin = bench.new_file("latin.txt", "wörd".encode("latin-1"))
    bench.refused(*predict, "--file", latin, says="not UTF-8", fix="Save")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    bench.refused(*predict, "--file", "-", says="holds no text", fix="one text")


def test_init_refuses_what_it_cannot_propose_for(bench):
    new = ["--out", "new.yaml"]
    bench.refused("init", "none.csv", *new, says="no data file", fix="path")
    bench.refused("init", "data.csv", "--out", "job.yaml", says="exists", fix="--force")
    bench.refused("init", "data.csv", "--out", "home", says="is a folder", fix="--out")
    out = ["--out", "no/folder/job.yaml"]
    bench.refused("init", "data.csv", *out, says="cannot be written", fix="--out")
    numbers = bench.new_file("numbers.jsonl", '{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n')
    bench.refused("init", numbers, *new, says="no column of text", fix="messages")
    assert not Path("new.yaml").exists()


def test_missing_extras_are_named(bench, monkeypatch):
    from pft_ray.cli import extras

    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name in ("torch", "ray") else True
    )
    verbs = {
        "train": [bench.job],
        "predict": ["run", "text"],
        "export": ["run", "out"],
    }
    for verb, arguments in verbs.items():
        error = bench.refused(
            *verb.split(),
            *arguments,
            says=f"`pft {verb}` needs torch, ray",
            fix=r"pip install 'pft-ray\[train\]'",
        )
        assert error["code"] == "missing-extra"


def test_a_defect_shows_its_kind_and_place_but_no_text(bench, monkeypatch):
    def broken(*_args, **_kwargs):
        raise KeyError("secretword of a record")

    monkeypatch.setattr("pft_ray.config.load_job", broken)
    answer = pft("plan", bench.job, "--json")
    assert answer.code == 1
    error = answer.json["error"]
    assert "unexpected KeyError in cli/plan.py" in error["message"]
    assert "PFT_TRACEBACK=1" in error["fix"]
    assert not PRIVATE.search(answer.out + answer.err)
    monkeypatch.setenv("PFT_TRACEBACK", "1")
    with pytest.raises(KeyError):
        pft("plan", bench.job)


def test_a_full_disk_is_named_without_a_traceback(bench, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "/somewhere/job.yaml")

    monkeypatch.setattr("pft_ray.config.load_job", full)
    answer = pft("plan", bench.job)
    assert answer.code == 1
    assert "/somewhere/job.yaml: No space left on device." in answer.err
    assert "Traceback" not in answer.err
