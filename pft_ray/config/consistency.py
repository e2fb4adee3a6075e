"""What two sections of a job must not say against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.config.elastic import check_elastic
from pft_ray.config.filters import check_filters
from pft_ray.config.owners import check_absences, check_owners, check_sequential
from pft_ray.config.users import check_users
from pft_ray.errors import ConfigError

if TYPE_CHECKING:
    from pft_ray.config.sections import JobSpec


def check_consistent(job: JobSpec) -> None:
    """Refuses a job whose sections contradict one another.

    Raises:
        ConfigError: Names the keys and what to change.
    """
    for check in (
        _check_task,
        _check_trainable,
        _check_sizes,
        check_users,
        check_filters,
        check_owners,
        check_sequential,
        check_absences,
        check_elastic,
        _check_evaluation,
        _check_workers,
    ):
        check(job)


def _check_task(job: JobSpec) -> None:
    if job.model.task == "classification" and job.data.labels is None:
        raise ConfigError(
            "model.task is classification but data.labels is missing.",
            "Give data.label and data.labels, or set model.task: causal_lm.",
        )
    if job.model.task == "causal_lm" and job.data.labels is not None:
        raise ConfigError(
            "data.labels makes no sense with model.task causal_lm.",
            "Remove data.label and data.labels, or set model.task: classification.",
        )


def _check_trainable(job: JobSpec) -> None:
    trained = {p for phase in job.training.phases for p in phase.trainable.split("+")}
    if "biases" in trained and job.model.lora is not None:
        raise ConfigError(
            "training.phases trains the base model's biases, and model.lora is given.",
            "Use model.lora.bias: all for biases beside adapters.",
        )
    if "all" in trained and len(trained) > 1:
        raise ConfigError(
            "training.phases mixes 'all' with head or adapter phases.",
            "Train all in every phase, or in none.",
        )
    if "adapter" in trained and job.model.lora is None:
        raise ConfigError(
            "A phase trains the adapter but model.lora is missing.",
            "Add model.lora, for example {rank: 4, targets: [query, value]}.",
        )
    if job.model.lora is not None and "adapter" not in trained:
        raise ConfigError(
            "model.lora is given but no phase trains the adapter.",
            "Remove model.lora, or set trainable: adapter in a phase.",
        )
    if "head" in trained and job.model.task == "causal_lm":
        raise ConfigError(
            "A phase trains the head, but a causal_lm has none of its own.",
            "Set trainable: adapter, or model.task: classification.",
        )


def _check_sizes(job: JobSpec) -> None:
    n, batch = job.data.num_train, job.training.batch_size
    if batch is not None and batch > n:
        raise ConfigError(
            f"training.batch_size {batch} is larger than data.num_train {n}.",
            "Lower batch_size: it is the expected part of the n units in a step.",
        )
    _check_delta("privacy.delta", job.privacy.delta, "data.num_train", n)
    if job.training.baseline and not job.data.public:
        raise ConfigError(
            "training.baseline trains without privacy, and data.public is false.",
            "Remove training.baseline; it is for data registered as public.",
        )


def _check_evaluation(job: JobSpec) -> None:
    section, size = job.evaluation, job.data.num_validation
    if section is None:
        return
    if size is None:
        raise ConfigError(
            "The evaluation needs data.num_validation, which is missing.",
            "Declare data.num_validation, or set evaluation: null.",
        )
    delta = section.delta or job.privacy.delta
    _check_delta("The evaluation's delta", delta, "data.num_validation", size)
    if section.looks is not None and section.looks[-1] > job.num_steps:
        raise ConfigError(
            f"evaluation.looks names step {section.looks[-1]}, but the phases have "
            f"{job.num_steps} steps.",
            f"Give step counts of at most {job.num_steps}.",
        )


def _check_delta(key: str, delta: float, size_key: str, size: int) -> None:
    if delta * size >= 1:
        raise ConfigError(
            f"{key} is {delta:g}, not below 1/{size_key} = {1 / size:.3g}.",
            f"Give a delta below {1 / size:.3g}; 1e-5 or n**-1.1 are usual.",
        )


def _check_workers(job: JobSpec) -> None:
    workers, shares = job.cluster.most_workers, job.training.noise_shares
    if workers > job.data.num_train:
        raise ConfigError(
            f"cluster.workers or max_workers {workers} is more than the "
            f"{job.data.num_train} {job.privacy.unit}s that data.num_train declares.",
            "Lower it.",
        )
    if shares is not None and shares < workers:
        raise ConfigError(
            f"training.noise_shares is {shares} for {workers} workers: some would send "
            "sums without noise.",
            "Give at least one share a worker, or leave noise_shares out.",
        )
