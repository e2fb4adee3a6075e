"""From the sections of a job to the specifications that data and training take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.data.paths import resolve_model_path
from pft_ray.data.spec import DataSpec, SplitSpec
from pft_ray.training.models import LoraSpec, ModelSpec
from pft_ray.training.optimizers import OptimizerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.config import JobSpec, PhaseSection, TrainingSection


def data_spec(job: JobSpec, base_dir: Path) -> DataSpec:
    """Returns the data section with its path resolved."""
    data = job.data
    return DataSpec(
        path=(base_dir / data.path).resolve(),
        num_train=data.num_train,
        text=data.text,
        messages=data.messages,
        label=data.label,
        labels=data.labels or (),
        id=data.id,
        user=data.user,
        split=SplitSpec(
            data.split.field, data.split.salt, data.split.validation_fraction
        ),
        num_validation=data.num_validation,
        max_length=data.max_length,
        deduplicate=data.deduplicate,
        format=data.format,
    )


def split_predicate(job: JobSpec, role: str) -> dict[str, object]:
    """Returns the public predicate that cuts a block out of the data set."""
    split = job.data.split
    return {
        "kind": "hash-split",
        "field": split.field or job.data.user or job.data.id or "content",
        "salt": split.salt,
        "validation_fraction": split.validation_fraction,
        "role": role,
    }


def model_spec(job: JobSpec, base_dir: Path) -> ModelSpec:
    """Returns the model section with its path resolved."""
    model = job.model
    lora = model.lora
    return ModelSpec(
        path=resolve_model_path(model.path, base_dir),
        task=model.task,
        num_labels=len(job.data.labels or ()),
        pooling=model.pooling,
        lora=None
        if lora is None
        else LoraSpec(lora.rank, lora.alpha, lora.targets, lora.layers),
        init_seed=job.training.seed,
    )


def optimizer_spec(training: TrainingSection, phase: PhaseSection) -> OptimizerSpec:
    """Returns the optimiser of a phase."""
    return OptimizerSpec(
        name=training.optimizer,
        learning_rate=phase.learning_rate,
        head_learning_rate=phase.head_learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=phase.warmup_steps,
        decay=phase.decay,
        num_steps=phase.steps,
    )
