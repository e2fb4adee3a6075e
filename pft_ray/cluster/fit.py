"""Ray Train: starts the worker group and restarts it after a death."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pft_ray.cluster.worker import WorkerSettings, train_worker
from pft_ray.crypto import new_token
from pft_ray.errors import PftError, RunFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.cluster.run_folder import RunFolder
    from pft_ray.config import BuiltJob

_COLLECTIVE_TIMEOUT_S = 120
_CAUSE_LENGTH = 4000


@dataclass
class FitOutcome:
    """How the worker group ended.

    Attributes:
        status: completed, budget_exhausted, interrupted, failed (for good) or died
            (the worker group; the run can be resumed).
        error: The typed error of a failed run.
        cause: Words for the operator.
        worker: Rank 0's own account; empty when the group died.
        released: Steps made by attempt, as far as the last group knows.
    """

    status: str
    error: PftError | None = None
    cause: str = ""
    worker: dict[str, Any] = field(default_factory=dict)
    released: dict[int, int] = field(default_factory=dict)


def fit_workers(
    built: BuiltJob, folder: RunFolder, resume_from: Path | None
) -> FitOutcome:
    """Runs the worker group to its end.

    A worker's death restarts the whole group from the last registered checkpoint,
    as a new attempt; that is repeated ``cluster.max_failures`` times.
    """
    cluster = built.job.cluster
    settings = WorkerSettings(
        run_id=folder.run_id,
        run_dir=str(folder.path),
        job=built.job.model_dump(mode="json"),
        base_dir=str(built.base_dir),
        plan=built.plan.to_dict(),
        resume_from=str(resume_from) if resume_from else None,
        threads=max(1, int(cluster.cpus_per_worker)),
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=asdict(settings),
        torch_config=TorchConfig(backend="gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            resources_per_worker={"CPU": cluster.cpus_per_worker},
        ),
        run_config=RunConfig(
            # A name used twice would silently resume: every start has its own.
            name=f"life-{new_token().hex()[:12]}",
            storage_path=str(folder.checkpoints),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = trainer.fit()
    except Exception as problem:  # noqa: BLE001 - Ray raises many kinds; all end a run
        cause = f"{type(problem).__name__}: {problem}"[:_CAUSE_LENGTH]
        return FitOutcome("died", _typed(problem), cause)
    worker: dict[str, Any] = result.return_value or {}
    error: PftError | None = worker.get("error")
    return FitOutcome(
        worker.get("status", "failed"),
        error,
        str(error) if error is not None else "",
        worker,
        worker.get("released", {}),
    )


def _typed(error: BaseException) -> PftError:
    """Returns a typed error that names the kind of failure, never a record."""
    return RunFailedError(
        f"The worker group failed for good ({type(error).__name__}).",
        "The workers' logs say why; run the same command again to resume.",
    )
