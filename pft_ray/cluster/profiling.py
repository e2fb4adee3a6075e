"""Measures how fast a job's steps are on this machine at several settings.

One process for each number of threads, with and without gradient checkpointing,
measures made-up records of the job's shapes. No Ray, no ledger, and no data: the data
file is not even looked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pft_ray
from pft_ray.cluster.model_check import check_model
from pft_ray.cluster.specs import model_spec
from pft_ray.errors import ModelError, RunFailedError
from pft_ray.scaling.vertical import Measurement, Profile, Setting, merge_phases
from pft_ray.training.models import load_model
from pft_ray.training.probe import PhaseProbe, expected_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pft_ray.config import BuiltJob, JobSpec

_CHILD = "pft_ray.cluster.profile_child"
_LARGEST = 256
_BUDGET_S = 6.0  # for each measurement
_BUSY = 0.5


@dataclass(frozen=True)
class Measured:
    """One setting in one phase.

    Attributes:
        phase: Name of the phase.
        setting: The setting.
        probe: What was measured.
        peak_bytes: Expected size of a worker: the peak of the process that measured,
            plus what a worker keeps of its declared records. Ray's own share (some
            100 MB) and the raw text are not in it. None when it is not known.
    """

    phase: str
    setting: Setting
    probe: PhaseProbe
    peak_bytes: int | None


@dataclass(frozen=True)
class JobProfile:
    """What was measured of a job.

    Attributes:
        current: The job's own setting.
        measured: Everything, in the order it was measured.
        steps: Planned steps by phase.
        notes: What was left out, and why, in words.
    """

    current: Setting
    measured: tuple[Measured, ...]
    steps: dict[str, int]
    notes: tuple[str, ...]

    def of_job(self) -> Profile:
        """Returns the settings that all phases were measured at, as one profile."""
        phases = []
        for name, steps in self.steps.items():
            rows = tuple(
                Measurement(m.setting, m.probe.seconds_per_record, m.peak_bytes)
                for m in self.measured
                if m.phase == name
            )
            phases.append((steps, Profile(rows, self.current)))
        return merge_phases(phases)

    def probes(self, setting: Setting) -> dict[str, PhaseProbe]:
        """Returns what was measured at a setting, by phase."""
        return {m.phase: m.probe for m in self.measured if m.setting == setting}


def current_setting(job: JobSpec) -> Setting:
    """Returns what the workers of a job use as its file stands."""
    return Setting(
        threads=max(1, int(job.cluster.cpus_per_worker)),
        micro_batch=job.training.max_micro_batch,
        gradient_checkpointing=job.model.gradient_checkpointing,
    )


def profile_job(
    built: BuiltJob, cpus: int, on_measured: Callable[[Measured], object]
) -> JobProfile:
    """Measures a job's phases with 1, 2, 4, ... up to ``cpus`` threads.

    Args:
        built: The job and its plan.
        cpus: Most threads of a worker.
        on_measured: Told of each measurement as it is made.

    Raises:
        ModelError: The model, its tokenizer or a phase does not suit the job, as
            ``pft train`` would say.
        RunFailedError: A measuring process ended without a word.

    Guarantee:
        No record is read, nothing is charged, and no ledger is opened.
    """
    job = built.job
    measured: list[Measured] = []
    notes: list[str] = []
    check_model(job, built.base_dir)
    busy = os.getloadavg()[0]
    if busy > _BUSY:
        notes.append(
            f"The machine was busy before (load {busy:.1f}): times may be too long."
        )
    for again in _checkpointing(built, notes):
        for threads in _threads(cpus):
            for answer in _child(built, threads, again=again):
                if "note" in answer:
                    notes.append(f"{_words(threads, again=again)}: {answer['note']}")
                    continue
                setting = Setting(threads, answer["micro_batch"], again)
                row = _measured(built, setting, answer)
                measured.append(row)
                on_measured(row)
    steps = {phase.name: phase.steps for phase in job.training.phases}
    return JobProfile(current_setting(job), tuple(measured), steps, tuple(notes))


def micro_batches(built: BuiltJob) -> list[int]:
    """Returns the micro-batches to try: 1, 4, 16, ... and the job's own.

    A size that no step can fill is left out, and so is one that cannot hold a user.
    """
    own = built.job.training.max_micro_batch
    user = built.plan.user
    least = user.max_records_per_user if user and user.kind == "uls" else 1
    most = max(own, min(_LARGEST, 2 * _records_of_a_rank(built)))
    sizes = {4**power for power in range(7)} | {own}
    return sorted(size for size in sizes if least <= size <= most)


def _records_of_a_rank(built: BuiltJob) -> float:
    return expected_records(built.plan) / built.job.cluster.workers


def _threads(cpus: int) -> list[int]:
    found = {2**power for power in range(cpus.bit_length()) if 2**power <= cpus}
    return sorted(found | {cpus})


def _words(threads: int, *, again: bool) -> str:
    plural = "s" if threads > 1 else ""
    return f"{threads} thread{plural}{' with gradient checkpointing' if again else ''}"


def _checkpointing(built: BuiltJob, notes: list[str]) -> list[bool]:
    """Returns with and without checkpointing, where the model offers it."""
    spec = model_spec(built.job, built.base_dir)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_model(replace(spec, gradient_checkpointing=True), is_outline=True)
    except ModelError:
        notes.append("This model has no gradient checkpointing.")
        return [False]
    return [False, True]


def _measured(built: BuiltJob, setting: Setting, answer: dict[str, Any]) -> Measured:
    probe = PhaseProbe(**answer["probe"])
    peak = probe.peak_bytes
    if peak is not None:
        peak += _bytes_of_records(built, probe)
    return Measured(answer["phase"], setting, probe, peak)


def _bytes_of_records(built: BuiltJob, probe: PhaseProbe) -> int:
    """Returns what a worker holds of its declared records: tokens, masks and kept."""
    user = built.plan.user
    declared = built.plan.size if user is None else user.num_records
    if built.plan.independent_workers == 1:
        declared = -(-declared // built.job.cluster.workers)
    each = 5 * built.job.data.max_length + 40 + probe.kept_bytes_per_record
    return declared * each


def _child(built: BuiltJob, threads: int, *, again: bool) -> Iterator[dict[str, Any]]:
    """Yields what a fresh process measures at one number of threads."""
    task = {
        "job": built.job.model_dump(mode="json") | {"ledger": {}},
        "base_dir": str(built.base_dir),
        "threads": threads,
        "gradient_checkpointing": again,
        "micro_batches": micro_batches(built),
        "expected_records": _records_of_a_rank(built),
        "budget_s": _BUDGET_S,
    }
    root = str(Path(pft_ray.__file__).parents[1])
    places = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = False
    with subprocess.Popen(  # noqa: S603 - this interpreter, a module of this package
        [sys.executable, "-m", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it says why by its exit code
                process.stdin.write(json.dumps(task))
                process.stdin.close()
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise ModelError(answer["error"], answer["fix"])
                ended = ended or "done" in answer
                if not ended:
                    yield answer
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if not ended:
        yield _without_a_word(process.returncode, _words(threads, again=again))


def _without_a_word(code: int, words: str) -> dict[str, Any]:
    """Returns a note on a process that the system ended; anything else is a defect."""
    if code == -9:
        return {"note": "ended by the system, most likely for its memory"}
    raise RunFailedError(
        f"Measuring with {words} ended with exit code {code}.",
        f"Run `python -m {_CHILD}` to see why, or set fewer threads.",
    )
