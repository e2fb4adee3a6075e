"""Ray Train: starts the worker group and restarts it after a death."""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pft_ray.cluster.elastic import (
    BoundaryPolicy,
    ElasticTrainer,
    controller_environment,
)
from pft_ray.cluster.elastic_settings import elastic_settings, region_selector
from pft_ray.cluster.worker import WorkerSettings, train_worker
from pft_ray.crypto import new_token
from pft_ray.errors import PftError, RunFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.cluster.elastic_settings import ElasticSettings
    from pft_ray.cluster.run_folder import RunFolder
    from pft_ray.config import BuiltJob

# A dead worker is seen by Ray within a second and ends its group. A limit here would
# only end steps that take long, and how long a step takes depends on its batch.
_COLLECTIVE_TIMEOUT_S = 24 * 3600
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
    built: BuiltJob, folder: RunFolder, resume_from: Path | None, num_workers: int
) -> FitOutcome:
    """Runs the worker group to its end, with as many workers as there are.

    A worker's death restarts the whole group from the last registered checkpoint,
    as a new attempt; that is repeated ``cluster.max_failures`` times.
    """
    cluster = built.job.cluster
    settings = WorkerSettings(
        run_id=folder.run_id,
        run_dir=str(folder.path),
        # Ray stores what it is given, and workers do not open the ledger.
        job=built.job.model_dump(mode="json") | {"ledger": {}},
        base_dir=str(built.base_dir),
        plan=built.plan.to_dict(),
        resume_from=str(resume_from) if resume_from else None,
        threads=max(1, int(cluster.cpus_per_worker)),
        is_elastic=cluster.elastic is not None,
    )
    elastic = elastic_settings(built, folder.run_id) if cluster.elastic else None
    trainer = _trainer(built, folder, asdict(settings), num_workers, elastic)
    environment = nullcontext() if elastic is None else controller_environment()
    try:
        with warnings.catch_warnings(), environment:
            warnings.simplefilter("ignore")
            result = trainer.fit()
    except Exception as problem:  # noqa: BLE001 - Ray raises many kinds; all end a run
        return FitOutcome("died", _typed(problem), _cause(problem))
    worker: dict[str, Any] = result.return_value or {}
    error: PftError | None = worker.get("error")
    return FitOutcome(
        worker.get("status", "failed"),
        error,
        str(error) if error is not None else "",
        worker,
        worker.get("released", {}),
    )


def _trainer(
    built: BuiltJob,
    folder: RunFolder,
    settings: dict[str, Any],
    num_workers: int,
    elastic: ElasticSettings | None,
) -> TorchTrainer:
    """Returns Ray Train's trainer, of a fixed size or under the run's own policy."""
    cluster = built.job.cluster
    size: Any = num_workers
    if elastic is not None:
        size = (elastic.limits.floor, elastic.limits.max_workers)
        size = size[0] if size[0] == size[1] else size
    scaling = ScalingConfig(
        num_workers=size,
        resources_per_worker={"CPU": cluster.cpus_per_worker},
        label_selector=region_selector(cluster.regions),
    )
    arguments: dict[str, Any] = {
        "train_loop_config": settings,
        "torch_config": TorchConfig(backend="gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        "scaling_config": scaling,
        "run_config": RunConfig(
            # A name used twice would silently resume: every start has its own.
            name=f"life-{new_token().hex()[:12]}",
            storage_path=str(folder.checkpoints),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    }
    if elastic is None:
        return TorchTrainer(train_worker, **arguments)
    policy = BoundaryPolicy(scaling, elastic)
    return ElasticTrainer(train_worker, policy=policy, **arguments)


def _typed(error: BaseException) -> PftError:
    """Returns what a worker raised on purpose, or the kind of failure."""
    for _, problem in _failures(error):
        if isinstance(problem, PftError):
            return problem
    refused = getattr(error, "controller_failure", None)
    if isinstance(refused, PftError):
        return refused
    return RunFailedError(
        f"The worker group failed for good ({type(error).__name__}).",
        "operator.json says where; run the same command again to resume.",
    )


def _cause(error: BaseException) -> str:
    """Returns kinds and places of what failed, for the operator.

    Words of an error that is not ours may quote a record, and Ray's message repeats
    them: neither is kept.
    """
    parts = [type(error).__name__]
    for rank, problem in _failures(error):
        ours = isinstance(problem, PftError)
        words = str(problem) if ours else type(problem).__name__
        parts.append(f"rank {rank}: {words}{_place(error, rank)}")
    return "; ".join(parts)[:_CAUSE_LENGTH]


def _failures(error: BaseException) -> list[tuple[int, BaseException]]:
    """Returns what each rank raised, without Ray's wrapping."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return [
        (rank, getattr(problem, "_base_exc", problem))
        for rank, problem in sorted(failures.items())
    ]


def _place(error: BaseException, rank: int) -> str:
    """Returns the last line of pft_ray in a rank's traceback, or in Ray's message."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    trace = str(getattr(failures[rank], "_traceback_str", error))
    lines = re.findall(r'File "[^"]*pft_ray/([^"]+)", line (\d+)', trace)
    return f" in {lines[-1][0]}, line {lines[-1][1]}" if lines else ""
