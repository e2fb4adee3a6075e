"""``pft profile``: made-up records only, a plan that can be pasted, typed refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch

from pft_ray.cli import profile as profile_module
from pft_ray.cluster import profile_child, profiling
from pft_ray.config import build_job, load_job
from pft_ray.errors import RunFailedError
from pft_ray.training.local import LocalWork
from pft_ray.training.probe import PhaseProbe
from tests.e2e.refusals import pft
from tests.tiny_job import write_job

pytestmark = pytest.mark.timeout(300)
MIB = 1 << 20
QUICK = {
    "privacy__epsilon": None,
    "privacy__noise_multiplier": 1.0,
    "training__batch_size": 4,
    "training__max_micro_batch": 4,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny job whose data file is not there."""
    folder = tmp_path_factory.mktemp("profiled")
    path = write_job(folder, **QUICK)
    (folder / "data.csv").unlink()
    return path


@pytest.fixture(scope="module")
def answer(job):
    """What the verb measures on one CPU, and what it left behind."""
    home = job.parent / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFT_HOME", str(home))
        patch.setattr("pft_ray.cluster.placement.local_cpus", lambda: 1)
        patch.setattr(profiling, "_BUDGET_S", 100.0)  # also on a busy machine
        found = pft("profile", job, "--json")
    assert found.code == 0, found.err
    assert not home.exists(), "no ledger is opened"
    assert not (job.parent / "runs").exists()
    return found


def built(job, **changes):
    overrides = [f"{key.replace('__', '.')}={v}" for key, v in changes.items()]
    return build_job(load_job(job, overrides), job.parent)


def canned(monkeypatch, rows, *, notes=()):
    """Puts measurements in place of processes.

    Rows are (threads, checkpointing, micro_batch, seconds a record, MiB); both phases
    answer alike.
    """

    def child(_built, threads, *, again):
        yield from ({"note": note} for note in notes)
        for row in rows:
            if row[:2] != (threads, again):
                continue
            probe = {
                "micro_batch": row[2],
                "seconds_per_micro_batch": row[2] * row[3],
                "seconds_fixed": 0.5,
                "seconds_per_share": 0.0,
                "seconds_to_keep": 0.0,
                "num_parameters": 10,
                "cache_level": "none",
                "peak_bytes": row[4] * MIB,
            }
            for phase in ("head", "lora"):
                yield {"phase": phase, "micro_batch": row[2], "probe": probe}

    monkeypatch.setattr(profiling, "_child", child)
    monkeypatch.setattr("pft_ray.cluster.placement.local_cpus", lambda: 2)


def test_every_phase_is_measured_at_every_setting(answer):
    found = answer.json
    settings = {
        (m["phase"], m["threads"], m["micro_batch"], m["gradient_checkpointing"])
        for m in found["measurements"]
    }
    assert settings == {
        (phase, 1, size, again)
        for phase in ("head", "lora")
        for size in (1, 4)
        for again in (False, True)
    }
    assert all(m["seconds_per_record"] > 0 for m in found["measurements"])
    if sys.platform == "linux":
        assert all(m["peak_bytes"] > 50 * MIB for m in found["measurements"])
    assert found["current"]["micro_batch"] == 4
    assert "measured lora, 1 thread, micro-batch 4, gradient check" in answer.err


def test_the_steps_follow_from_serial_and_parallel_time(answer):
    for phase in answer.json["phases"]:
        (one,) = phase["seconds_a_step"]
        total_s = phase["serial_s"] + phase["parallel_s"]
        assert one == {"workers": 1, "seconds": pytest.approx(total_s)}
        assert phase["num_parameters"] == {"head": 66, "lora": 66 + 512}[phase["phase"]]


def test_the_plan_can_be_pasted(answer, job):
    lines = answer.json["plan"]["set"]
    names = [line.split("=")[0] for line in lines]
    assert names == [
        "training.max_micro_batch",
        "model.gradient_checkpointing",
        "cluster.cpus_per_worker",
    ]
    changed = load_job(job, lines)
    assert changed.training.max_micro_batch == answer.json["plan"]["max_micro_batch"]
    assert changed.cluster.cpus_per_worker == 0.5, "one thread needs no whole CPU"


def test_it_is_shown_as_tables(answer, capsys):
    found = answer.json | {"notes": ["something"]}
    found["plan"]["speedup"] = 4.0
    profile_module._show(found)
    out = capsys.readouterr().out
    assert "phase  threads  micro-batch  checkpointing  ms a record  MiB" in out
    assert "note: something" in out
    assert out.count("  --set ") == 3
    assert "A record takes 25% of its time as the job stands." in out
    assert "phase  workers  s a step" in out


def test_the_fastest_setting_that_fits_is_planned(job, monkeypatch):
    rows = [
        (1, False, 4, 0.010, 200),
        (2, False, 4, 0.006, 200),
        (2, False, 16, 0.002, 900),
        (2, True, 16, 0.003, 300),
    ]
    canned(monkeypatch, rows, notes=["too slow"])
    free = pft("profile", job, "--json").json
    assert free["plan"]["set"] == [
        "training.max_micro_batch=16",
        "model.gradient_checkpointing=false",
        "cluster.cpus_per_worker=2",
    ]
    assert free["plan"]["speedup"] == pytest.approx(5.0)
    assert sum("too slow" in note for note in free["notes"]) == 4
    limit = "training.memory_limit_gib=0.5"
    tight = pft("profile", job, "--json", "--set", limit).json
    assert tight["plan"]["gradient_checkpointing"] is True
    # Of two workers on two CPUs, each has one.
    two = pft("profile", job, "--json", "--set", "cluster.workers=2").json
    assert (two["plan"]["threads"], two["plan"]["max_micro_batch"]) == (1, 4)
    steps = two["phases"][0]["seconds_a_step"]
    assert [row["workers"] for row in steps] == [1, 2]
    assert steps[0]["seconds"] == pytest.approx(0.5 + 4 * 0.010)
    assert steps[1]["seconds"] == pytest.approx(0.5 + 4 * 0.010 / 2)


def test_nothing_that_fits_is_refused_with_what_is_needed(job, monkeypatch):
    canned(monkeypatch, [(1, False, 4, 0.010, 200)])
    limit = "training.memory_limit_gib=0.01"
    refused = pft("profile", job, "--json", "--set", limit)
    assert refused.code == 2
    error = refused.json["error"]
    assert error["code"] == "cannot-place"
    assert "1 thread, micro-batch 4 needs 0.20 GiB" in error["message"]
    assert error["fix"]


def test_what_a_worker_holds_is_counted(job, monkeypatch):
    canned(monkeypatch, [(1, False, 4, 0.010, 200)])
    (first, *_) = pft("profile", job, "--json").json["measurements"]
    each = 5 * 12 + 40  # tokens and mask of 12 positions, lengths, digests, targets
    assert first["peak_bytes"] == 200 * MIB + 300 * each


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ("model.path=nowhere", "bad-model", "no model folder"),
        ("data.max_length=33", "bad-model", "takes 32 tokens"),
        ("training.batch_size=-1", "bad-config", "batch_size"),
    ],
)
def test_what_train_refuses_is_refused(job, changes, code, says):
    refused = pft("profile", job, "--json", "--set", changes)
    assert refused.code == 2
    assert refused.json["error"]["code"] == code
    assert says in refused.json["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [1, 4]),
        ({"training__batch_size": 100}, [1, 4, 16, 64]),
        ({"training__batch_size": 100, "cluster__workers": 10}, [1, 4, 16]),
        ({"training__max_micro_batch": 50}, [1, 4, 16, 50]),
    ],
)
def test_micro_batches_that_a_step_can_fill(job, changes, sizes):
    assert profiling.micro_batches(built(job, **changes)) == sizes


def test_micro_batches_hold_a_whole_user(tmp_path):
    path = write_job(
        tmp_path,
        **QUICK
        | {
            "data__user": "sender",
            "privacy__unit": "user",
            "privacy__user_level": "uls",
            "privacy__max_records_per_user": 3,
            "privacy__num_train_records": 600,
        },
    )
    assert profiling.micro_batches(built(path)) == [4, 16]


@pytest.mark.parametrize(
    ("cpus", "threads"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])]
)
def test_threads(cpus, threads):
    assert profiling._threads(cpus) == threads


def task(job, **changes):
    return {
        "job": built(job).job.model_dump(mode="json") | {"ledger": {}},
        "base_dir": str(job.parent),
        "threads": torch.get_num_threads(),
        "gradient_checkpointing": False,
        "micro_batches": [1, 4, 16],
        "expected_records": 64.0,
        "budget_s": 6.0,
    } | changes


def fake_probe(monkeypatch, measure):
    def probe(work, _expected, **_options):
        size, peak = measure(work.micro_batch)
        return PhaseProbe(size, 1.0, 0.0, 0.0, 0.0, 1, "none", peak_bytes=peak)

    monkeypatch.setattr(profile_child, "probe_phase", probe)


def outcome(job):
    """(phase, micro-batch) of each measurement, and the notes."""
    found = list(profile_child.measure(task(job)))
    rows = [(a["phase"], a["micro_batch"]) for a in found if "phase" in a]
    return rows, [a["note"] for a in found if "note" in a]


def test_sizes_that_take_too_long_are_left_out(job, monkeypatch):
    fake_probe(monkeypatch, lambda size: (min(size, 3), None))
    rows, notes = outcome(job)
    assert rows == [("head", 1), ("lora", 1)]
    assert len(notes) == 2
    assert "from micro-batch 4 on not measured" in notes[0]


def test_sizes_beyond_the_free_memory_are_not_tried(job, monkeypatch):
    fake_probe(monkeypatch, lambda size: (size, 1000 * size))
    monkeypatch.setattr(profile_child, "peak_bytes", lambda _run: 0)
    monkeypatch.setattr(profile_child, "_room_bytes", lambda: 5000.0)
    rows, notes = outcome(job)
    assert rows == [("head", 1), ("head", 4), ("lora", 1), ("lora", 4)]
    assert "from micro-batch 16 on not measured" in notes[0]


def test_running_out_of_memory_ends_a_phase_only(job, monkeypatch):
    def measure(size):
        if size > 1:
            raise MemoryError
        return size, None

    fake_probe(monkeypatch, measure)
    rows, notes = outcome(job)
    assert rows == [("head", 1), ("lora", 1)]
    assert notes == ["phase head ran out of memory", "phase lora ran out of memory"]


def test_a_phase_of_single_records_is_measured_once(job, monkeypatch):
    fake_probe(monkeypatch, lambda size: (1, None))
    start = LocalWork.start_phase

    def slow(work, *options):
        start(work, *options)
        work.micro_batch, work.slow_reason = 1, "a use is not known"

    monkeypatch.setattr(LocalWork, "start_phase", slow)
    rows, notes = outcome(job)
    assert rows == [(phase, n) for phase in ("head", "lora") for n in (1, 4, 16)]
    assert notes == []


def test_a_child_tells_typed_errors(job, monkeypatch, capsys):
    wrong = task(job)
    wrong["job"]["model"]["path"] = "nowhere"
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(wrong)))
    profile_child.main()
    told = json.loads(capsys.readouterr().out)
    assert "no model folder" in told["error"]
    assert told["fix"]


def test_a_child_that_ends_without_a_word(job, monkeypatch):
    assert "memory" in profiling._without_a_word(-9, "1 threads")["note"]
    monkeypatch.setattr(profiling, "_CHILD", "no_such_module")
    with pytest.raises(RunFailedError, match="exit code 1"):
        list(profiling._child(built(job), 1, again=False))


def test_no_ray_where_memory_is_measured():
    script = "import sys, pft_ray.cluster.profile_child; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
