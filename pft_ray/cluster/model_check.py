"""Looks at a job's base model in the driver, before anything is reserved.

Only names and shapes of the weights are read, so it takes a moment for any model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.cluster.specs import model_spec, optimizer_spec
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.tokenize import load_tokenizer
from pft_ray.errors import ModelError
from pft_ray.training.clipping import PerRecordClipper
from pft_ray.training.models import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.config import JobSpec
    from pft_ray.training.models import TrainedModel


def check_model(job: JobSpec, base_dir: Path) -> Any:
    """Checks model, adapters, trainable sets and tokenizer against the job.

    Returns:
        The tokenizer.

    Raises:
        ModelError: The model is missing, damaged or incomplete, takes fewer tokens
            than the job asks for, has no module of an adapter target's name, or has
            a trained part whose per-record gradients are not known; or the tokenizer
            is missing or belongs to another model.
    """
    spec = model_spec(job, base_dir)
    model = load_model(spec, is_outline=True)
    _check_length(job, model)
    for phase in job.training.phases:
        optimizer_spec(job.training, phase)
        PerRecordClipper(model.module, model.set_trainable(phase.trainable))
    return _check_tokenizer(job, model, resolve_model_path(job.model.path, base_dir))


def _check_length(job: JobSpec, model: TrainedModel) -> None:
    limit = model.max_positions
    if limit is not None and job.data.max_length > limit:
        raise ModelError(
            f"data.max_length is {job.data.max_length}; the model {job.model.path!r} "
            f"takes {limit} tokens.",
            f"Give data.max_length of at most {limit}.",
        )


def _check_tokenizer(job: JobSpec, model: TrainedModel, path: str) -> Any:
    tokenizer = load_tokenizer(path)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= model.vocab_size:
        raise ModelError(
            f"The tokenizer of {job.model.path!r} has token {largest}; the model knows "
            f"{model.vocab_size}.",
            "Put the model's own tokenizer into its folder.",
        )
    own = int(tokenizer.num_special_tokens_to_add())
    if job.data.max_length <= own:
        raise ModelError(
            f"data.max_length {job.data.max_length} leaves no room: the tokenizer adds "
            f"{own} tokens of its own.",
            f"Give data.max_length above {own}.",
        )
    if job.data.messages is not None and not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"The tokenizer of {job.model.path!r} has no chat template.",
            "Use an instruction-tuned model, or give plain text in data.text.",
        )
    return tokenizer
