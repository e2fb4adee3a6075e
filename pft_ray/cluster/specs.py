"""From the sections of a job to the specifications that training and ledger take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.config.owners import training_blocks
from pft_ray.data.owners import OwnerRule
from pft_ray.data.paths import HUB, PACKAGE, resolve_model_path
from pft_ray.training.spec import LoraSpec, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.config import JobSpec, PhaseSection, TrainingSection
    from pft_ray.training.optimizers import OptimizerSpec


def split_predicate(job: JobSpec, role: str) -> dict[str, object]:
    """Returns the public predicate that cuts a block out of the data set.

    A column that is hashed and the text as a whole are told apart: a column may be
    named anything, also "content".
    """
    split = job.data.split
    column = split.field or job.data.user or job.data.id
    window = split.spec().window
    return {
        "kind": "hash-split",
        **({"field": column} if column else {"of": "the whole content"}),
        "salt": split.salt,
        "validation_fraction": split.validation_fraction,
        "role": role,
        **({} if window is None else {"window": window.cut()}),
    }


def block_predicates(job: JobSpec) -> dict[str, dict[str, object]]:
    """Returns the predicate of every block that the job names, training blocks first.

    With owners the training units of each have a block: the split's, cut by the owner.
    """
    found: dict[str, dict[str, object]] = {}
    whole = split_predicate(job, "train")
    section = job.privacy.owners
    if section is None:
        found[job.training_block] = whole
    else:
        rule = owner_rule(job)
        for number, name in enumerate(training_blocks(job)):
            found[name] = whole | {"owner": rule.cut(number, section.field)}
    if job.evaluation is not None:
        found[job.validation_block] = split_predicate(job, "validation")
    return found


def owner_rule(job: JobSpec) -> OwnerRule:
    """Returns the public rule by which records belong to the job's owners."""
    section = job.privacy.owners
    assert section is not None
    names = tuple(owner.name for owner in section.members)
    sizes = tuple(owner.size for owner in section.members)
    return OwnerRule(names, sizes, section.salt)


def model_spec(job: JobSpec, base_dir: Path) -> ModelSpec:
    """Returns the model section with its path resolved."""
    model = job.model
    lora = model.lora
    return ModelSpec(
        path=_portable_path(model.path, base_dir),
        task=model.task,
        num_labels=len(job.data.labels or ()),
        pooling=model.pooling,
        lora=None
        if lora is None
        else LoraSpec(
            lora.rank,
            lora.alpha,
            lora.targets,
            lora.layers,
            rslora=lora.rslora,
            bias=lora.bias,
            modules_to_save=lora.modules_to_save,
            dropout=lora.dropout,
        ),
        init_seed=job.training.seed,
        gradient_checkpointing=model.gradient_checkpointing,
        dropout=model.dropout,
        autocast=job.training.autocast is not None,
    )


def _portable_path(reference: str, base_dir: Path) -> str:
    """Package and hub references stay as written: a released adapter names them."""
    if reference.startswith((PACKAGE, HUB)):
        return reference
    return resolve_model_path(reference, base_dir)


def optimizer_spec(training: TrainingSection, phase: PhaseSection) -> OptimizerSpec:
    """Returns the optimiser of a phase; the only part here that needs torch."""
    from pft_ray.training.optimizers import OptimizerSpec

    return OptimizerSpec(
        name=training.optimizer,
        learning_rate=phase.learning_rate,
        head_learning_rate=phase.head_learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=phase.warmup_steps,
        decay=phase.decay,
        num_steps=phase.steps,
    )
