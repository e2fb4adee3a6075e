"""The quickstart's parts in one process, without Ray: job, records, model, keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import rankdata

from pft_ray.cluster.specs import model_spec, optimizer_spec
from pft_ray.config import BuiltJob, build_job, load_job
from pft_ray.crypto import derive_key
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.prepare import prepare_data
from pft_ray.data.tokenize import load_tokenizer, tokenize_table
from pft_ray.mechanisms import SampledGaussian, assign_shares
from pft_ray.training.local import LocalWork
from pft_ray.training.models import TrainedModel, load_model
from pft_ray.training.step import Collective, PrivateStep, StepKeys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.data.tokens import TokenTable

JOB = Path(__file__).parents[1] / "jobs" / "quickstart.yaml"
LORA_PHASE = 1
_PUBLIC_KEY = hashlib.sha256(b"pft-ray benchmarks, public data").digest()


def quickstart(overrides: list[str] | None = None) -> BuiltJob:
    """Returns the quickstart job with its plan."""
    return build_job(load_job(JOB, overrides), JOB.parent)


def tables(built: BuiltJob, num_records: int = 0) -> tuple[TokenTable, TokenTable]:
    """Returns training and validation records, the first ``num_records`` if given."""
    prepared = prepare_data(built.job.data.spec(built.base_dir), _PUBLIC_KEY)
    path = resolve_model_path(built.job.model.path, built.base_dir)
    tokenizer = load_tokenizer(path)
    length, task = built.job.data.max_length, built.job.model.task
    train, _ = tokenize_table(prepared.train, tokenizer, length, task)
    validation, _ = tokenize_table(prepared.validation, tokenizer, length, task)
    if num_records:
        train = train.take(np.arange(num_records))
        validation = validation.take(np.arange(min(num_records, len(validation))))
    return train, validation


def fresh_model(built: BuiltJob) -> TrainedModel:
    """Returns the job's model with its initial weights."""
    return load_model(model_spec(built.job, built.base_dir))


def work_of(built: BuiltJob, table: TokenTable, phase: int) -> LocalWork:
    """Returns the work of one rank at the start of a phase."""
    training = built.job.training
    work = LocalWork(
        fresh_model(built), table, max_micro_batch=training.max_micro_batch
    )
    section = training.phases[phase]
    work.start_phase(section.trainable, optimizer_spec(training, section))
    return work


def step_of(built: BuiltJob, table: TokenTable, collective: Collective) -> PrivateStep:
    """Returns the LoRA phase's step on the records of one rank."""
    return PrivateStep(
        plan=built.plan,
        mechanism=SampledGaussian.from_plan(built.plan),
        work=work_of(built, table, LORA_PHASE),
        unit_digests=table.digests,
        collective=collective,
    )


def public_keys(num_shares: int, step: int, rank: int, world: int) -> StepKeys:
    """Returns step keys that anybody can derive: for timing on public data only."""
    shares = assign_shares(num_shares, world, rank)
    return StepKeys(
        attempt=1,
        step=step,
        sample_key=derive_key(_PUBLIC_KEY, "sample", step),
        shares=shares,
        noise_keys=tuple(
            derive_key(_PUBLIC_KEY, "noise", step, index) for index, _ in shares
        ),
    )


class Scores(NamedTuple):
    """Exact accuracy and area under the ROC curve, and the majority's share."""

    accuracy: float
    auroc: float
    majority: float


def score(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> Scores:
    """Returns the exact measures of a binary classifier."""
    positive = targets == 1
    ranks = rankdata(probabilities[:, 1])
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    right = (probabilities[:, 1] >= 0.5) == positive
    return Scores(
        accuracy=float(right.mean()),
        auroc=float(above / (num_positive * num_negative)),
        majority=max(num_positive, num_negative) / len(targets),
    )
