"""The function that every Ray Train worker runs: set up, train, save, tell."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import torch

from pft_ray.accounting.plan import Plan
from pft_ray.cluster.actors import CoordinatorClient, connect
from pft_ray.cluster.baseline import run_baseline
from pft_ray.cluster.cluster_file import REGION_LABEL
from pft_ray.cluster.collective import GlooCollective
from pft_ray.cluster.inputs import Inputs, load_inputs
from pft_ray.cluster.specs import model_spec, optimizer_spec
from pft_ray.config import JobSpec, read_job
from pft_ray.crypto import new_token
from pft_ray.errors import (
    ModelError,
    PftError,
    PlacementError,
    ResumeError,
    RunFailedError,
)
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.checkpoint import read_checkpoint, write_checkpoint
from pft_ray.training.headers import CheckpointHeader
from pft_ray.training.local import LocalWork
from pft_ray.training.looks import look
from pft_ray.training.loop import LoopOutcome, TrainingLoop
from pft_ray.training.models import TrainedModel, load_model
from pft_ray.training.probe import expected_records, probe_phase, step_time
from pft_ray.training.spec import moves_base
from pft_ray.training.step import PrivateStep

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE_S = 0.5


@dataclass(frozen=True)
class WorkerSettings:
    """What the driver tells every worker; it holds no key and no record.

    Attributes:
        run_id: The run.
        run_dir: Its folder.
        job: The job as plain data.
        base_dir: Folder that the job's relative paths start from.
        plan: The plan as plain data.
        resume_from: Checkpoint folder to start from, or None.
        threads: Torch threads of a worker.
        is_elastic: Whether the group may be resized.
    """

    run_id: str
    run_dir: str
    job: dict[str, Any]
    base_dir: str
    plan: dict[str, Any]
    resume_from: str | None
    threads: int
    is_elastic: bool = False


class Worker:
    """One rank of a run."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = ray.train.get_context()
        self.settings = settings
        self.rank = int(context.get_world_rank())
        self.world = int(context.get_world_size())
        self.job: JobSpec = read_job(settings.job)
        self.plan = Plan.from_dict(settings.plan)
        self.client = CoordinatorClient(
            connect(settings.run_id), self.rank, new_token()
        )
        self.collective = GlooCollective()
        self.phase = -1
        self.timings: dict[str, float] = {}
        self.slow_phases: dict[str, str] = {}
        self._started = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """Trains and returns this rank's outcome as plain data."""
        torch.set_num_threads(self.settings.threads)
        error: PftError | None = None
        try:
            self._set_up()
        except PftError as problem:
            error = problem
        ready = self.collective.gather(np.array([error is None], dtype=np.int64))
        if error is not None or not all(bool(words[0]) for words in ready):
            return {"status": "failed", "error": error, "rank": self.rank}
        self._mark("set_up")
        start = self._restore()
        outcome = self._loop().run(start, "resume" if start else "start")
        if outcome.error is None:
            self._on_rank_0(self.client.settle)
        self._mark("training")
        return self._finish(outcome)

    def _mark(self, name: str) -> None:
        now = time.perf_counter()
        self.timings[name] = self.timings.get(name, 0.0) + now - self._started
        self._started = now

    def _set_up(self) -> None:
        self._check_region()
        base_dir = Path(self.settings.base_dir)
        self.inputs: Inputs = load_inputs(
            self.job,
            base_dir,
            self.client,
            rank=self.rank,
            world=self.world,
            plan=self.plan,
        )
        self.model: TrainedModel = load_model(model_spec(self.job, base_dir))
        self._try_phases()
        if self.settings.is_elastic and self.rank == 0:
            self._measure_phases()
        self.work = LocalWork(
            self.model,
            self.inputs.train,
            max_micro_batch=self.job.training.max_micro_batch,
            memory_limit_bytes=self._memory_limit_bytes(),
            users=self.inputs.groups,
            mean=self.plan.user is not None and self.plan.user.contribution == "mean",
        )
        self.initial = self.work.state()
        self.private_step = PrivateStep(
            plan=self.plan,
            mechanism=SampledGaussian.from_plan(self.plan),
            work=self.work,
            unit_digests=self.inputs.unit_digests,
            collective=self.collective,
            unit_owners=self.inputs.unit_owners,
        )

    def _memory_limit_bytes(self) -> int | None:
        limit = self.job.training.memory_limit_gib
        return None if limit is None else int(limit * (1 << 30))

    def _try_phases(self) -> None:
        """Runs made-up records through every phase before any step is charged."""
        work = LocalWork(
            self.model,
            self.inputs.train,
            max_micro_batch=2,
            memory_limit_bytes=self._memory_limit_bytes(),
        )
        for phase in self.job.training.phases:
            optimizer = optimizer_spec(self.job.training, phase)
            try:
                work.start_phase(phase.trainable, optimizer, phase.clipping)
                if work.slow_reason:
                    self.slow_phases[phase.name] = work.slow_reason
            except IndexError:
                raise ModelError(
                    f"The model cannot read {self.job.data.max_length} tokens.",
                    "Lower data.max_length: some models use positions for themselves.",
                ) from None

    def _check_region(self) -> None:
        """Refuses to hold a shard where the job does not allow one."""
        allowed = self.job.cluster.regions
        if allowed is None:
            return
        labels = ray.get_runtime_context().get_node_labels()
        region = labels.get(REGION_LABEL, "")
        if region not in allowed:
            raise PlacementError(
                f"Rank {self.rank} is on a node of region {region or 'unknown'!r}; "
                f"cluster.regions allows {', '.join(allowed)}.",
                f"Label the nodes with {REGION_LABEL}, or add nodes of these regions.",
            )

    def _measure_phases(self) -> None:
        """Measures made-up steps of every phase, once a run, for scaling decisions.

        How long real steps take depends on their batches, so it is not looked at.
        """
        if self.client.knows_step_times():
            return
        work = LocalWork(
            self.model,
            self.inputs.train,
            max_micro_batch=self.job.training.max_micro_batch,
            memory_limit_bytes=self._memory_limit_bytes(),
        )
        records, times = expected_records(self.plan), []
        for phase in self.job.training.phases:
            optimizer = optimizer_spec(self.job.training, phase)
            work.start_phase(phase.trainable, optimizer, phase.clipping)
            probe = probe_phase(work, records / self.world, budget_s=_PROBE_S)
            serial_s, parallel_s = step_time(probe, records, self.plan.num_shares)
            keep_s = probe.seconds_to_keep * self.plan.size
            times.append(
                {"serial_s": serial_s, "parallel_s": parallel_s, "keep_s": keep_s}
            )
        self.client.tell_step_times(times)

    def _restore(self) -> int:
        """Loads the newest registered checkpoint; returns the steps it has."""
        registered = ray.train.get_checkpoint()
        folder = self.settings.resume_from
        if registered is not None:
            with registered.as_directory() as path:
                return self._load(Path(path))
        return self._load(Path(folder)) if folder else 0

    def _load(self, folder: Path) -> int:
        tensors, header = read_checkpoint(folder, self.plan.digest)
        if header.run_id != self.settings.run_id:
            raise ResumeError(
                f"The checkpoint {folder.name} belongs to run {header.run_id}.",
                "Remove it: what another run released is not paid for by this one.",
            )
        last = min(header.step, self.plan.num_steps - 1)
        self.phase = self.plan.phase_at(last)[0]
        self.enter_phase(self.phase)
        self.work.load_state(tensors)
        self.private_step.clip_norms.load_state(tensors, header.step)
        return header.step

    def enter_phase(self, index: int) -> None:
        """Sets the trainable parameters and the optimiser of a phase."""
        phase = self.job.training.phases[index]
        optimizer = optimizer_spec(self.job.training, phase)
        self.work.start_phase(phase.trainable, optimizer, phase.clipping)

    def _loop(self) -> TrainingLoop:
        looks = self.plan.evaluation is not None
        return TrainingLoop(
            plan=self.plan,
            private_step=self.private_step,
            grants=self.client,
            enter_phase=self.enter_phase,
            checkpoint=self._checkpoint,
            evaluate=self._evaluate if looks else None,
            phase=self.phase,
            is_elastic=self.settings.is_elastic,
        )

    def _evaluate(self, key: bytes) -> list[int]:
        assert self.plan.evaluation is not None
        assert self.inputs.validation is not None
        return look(self.plan.evaluation, self.work, self.inputs.validation, key)

    def _checkpoint(self, step: int, attempt: int) -> None:
        """Reports a checkpoint and waits until the controller has registered it."""
        name = f"step-{step:06d}-attempt-{attempt}"
        folder = Path(tempfile.mkdtemp(prefix="pft-checkpoint-"))
        try:
            self._on_rank_0(lambda: self._write(folder, step, attempt))
            checkpoint = None
            if self.rank == 0:
                checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            ray.train.report(
                {"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name
            )
            ray.train.get_all_reported_checkpoints()
            self._on_rank_0(
                lambda: self.client.checkpoint_registered(attempt, step, name)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, step: int, attempt: int) -> None:
        position = self.client.position
        assert position is not None  # steps were made, so granted
        header = CheckpointHeader(
            self.settings.run_id,
            self.plan.digest,
            step,
            attempt,
            ledger_id=position["ledger_id"],
            sequence=position["sequence"],
            root=position["root"],
        )
        state = self.work.state() | self.private_step.clip_norms.state()
        write_checkpoint(folder, state, header)

    def _on_rank_0(self, act: Callable[[], None]) -> None:
        """Lets rank 0 act; what goes wrong there ends all ranks, so that none waits."""
        error: PftError | None = None
        if self.rank == 0:
            try:
                act()
            except PftError as problem:
                error = problem
        done = self.collective.gather(np.array([error is None], dtype=np.int64))
        if error is not None:
            raise error
        if not done[0][0]:
            raise RunFailedError("Rank 0 could not save a checkpoint.")

    def _finish(self, outcome: LoopOutcome) -> dict[str, Any]:
        """Saves the adapter, runs the baseline, and returns plain data."""
        finished = outcome.status in ("completed", "budget_exhausted")
        if finished and self.rank == 0:
            self._save_model()
        baseline = None
        if outcome.status == "completed" and self.job.training.baseline:
            baseline = run_baseline(self)
            self._mark("baseline")
        return {
            "status": outcome.status,
            "error": outcome.error,
            "rank": self.rank,
            "step": outcome.step,
            "clip_norms": self.private_step.clip_norms.to_dict(),
            "released": outcome.released,
            "num_units": len(self.inputs.unit_digests),
            "num_faulty": self.work.num_faulty,
            "one_unit_at_a_time": self.slow_phases,
            "data": self.inputs.notes,
            "baseline": baseline,
            "timings_s": self.timings,
            "waited_for_coordinator_s": sum(self.client.waited_s.values()),
        }

    def _save_model(self) -> None:
        full = any(moves_base(p.trainable) for p in self.plan.phases)
        final = Path(self.settings.run_dir) / ("model" if full else "adapter")
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.model.save(
            partial,
            labels=self.job.data.labels or (),
            max_length=self.job.data.max_length,
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point."""
    return Worker(WorkerSettings(**settings)).run()
