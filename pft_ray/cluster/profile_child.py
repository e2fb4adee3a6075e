"""The process that measures a job's phases at one number of threads.

Reads one JSON object from stdin and writes one line of JSON for each measurement, then
``{"done": true}``. A process of its own, so that a peak of memory is that of one model
and a setting that takes too much ends nothing else.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pft_ray.cluster.specs import model_spec, optimizer_spec
from pft_ray.config import read_job
from pft_ray.data.tokens import TokenTable
from pft_ray.errors import PftError
from pft_ray.training.local import LocalWork
from pft_ray.training.memory import peak_bytes, tells_peaks
from pft_ray.training.models import load_model
from pft_ray.training.probe import probe_phase
from pft_ray.training.totality import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pft_ray.config import JobSpec, PhaseSection
    from pft_ray.training.models import TrainedModel

_MEMORY = Path("/proc/meminfo")


def measure(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a measurement of each phase and micro-batch, and notes on those left out.

    Args:
        task: The job as plain data, its folder, threads, whether layers run again,
            micro-batches in rising order, the expected records of a rank's step, and
            seconds for each measurement.

    Raises:
        PftError: A phase of the job cannot be trained with this model.
    """
    torch.set_num_threads(task["threads"])
    job = read_job(task["job"])
    again = bool(task["gradient_checkpointing"])
    spec = model_spec(job, Path(task["base_dir"]))
    model = load_model(replace(spec, gradient_checkpointing=again))
    for phase in job.training.phases:
        try:
            yield from _phase(task, job, model, phase)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            yield {"note": f"phase {phase.name} ran out of memory"}


def _phase(
    task: dict[str, Any], job: JobSpec, model: TrainedModel, phase: PhaseSection
) -> Iterator[dict[str, Any]]:
    sizes: list[int] = task["micro_batches"]
    base = peak_bytes(lambda: None) if tells_peaks() else 0
    for number, size in enumerate(sizes):
        work = LocalWork(model, _shape(job), max_micro_batch=size)
        optimizer = optimizer_spec(job.training, phase)
        work.start_phase(phase.trainable, optimizer, phase.clipping)
        expected = task["expected_records"]
        budget_s = task["budget_s"]
        probe = probe_phase(work, expected, budget_s=budget_s, with_memory=True)
        if probe.micro_batch < min(work.micro_batch, max(1, round(expected))):
            yield _note(phase, sizes[number:], f"would take over {budget_s:g} s")
            return
        rows = sizes[number:] if work.slow_reason else [size]  # then all run alike
        for asked in rows:
            yield {"phase": phase.name, "micro_batch": asked, "probe": asdict(probe)}
        if work.slow_reason:
            return
        larger = sizes[number + 1 :]
        grown = 0 if probe.peak_bytes is None else probe.peak_bytes - base
        if larger and grown * larger[0] / size > _room_bytes():
            yield _note(phase, larger, "would take more memory than is free")
            return


def _note(phase: PhaseSection, sizes: list[int], why: str) -> dict[str, Any]:
    where = f"phase {phase.name} from micro-batch {sizes[0]} on"
    return {"note": f"{where} not measured, {why}"}


def _shape(job: JobSpec) -> TokenTable:
    """Returns an empty table of the job's length: probes ask for nothing else."""
    length = job.data.max_length
    causal = job.model.task == "causal_lm"
    return TokenTable(
        input_ids=np.zeros((0, length), dtype=np.int32),
        lengths=np.zeros(0, dtype=np.int32),
        digests=np.zeros((0, 16), dtype=np.uint8),
        targets=None if causal else np.zeros(0, dtype=np.int64),
        loss_mask=np.zeros((0, length), dtype=np.uint8) if causal else None,
    )


def _room_bytes() -> float:
    """Returns the memory that is free for new work; without an answer, any."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(found[0]) if found else float("inf")


def main() -> None:
    """Measures what stdin asks for."""
    try:
        for answer in measure(json.load(sys.stdin)):
            _tell(answer)
        _tell({"done": True})
    except PftError as error:
        _tell({"error": error.message, "fix": error.fix})


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
