"""Reads a released model back, for prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pft_ray.errors import ModelError
from pft_ray.training.adapters import ADAPTER_CONFIG, read_adapters
from pft_ray.training.classifier import TextClassifier
from pft_ray.training.loading import load_base
from pft_ray.training.models import (
    HEAD_CONFIG,
    HEAD_WEIGHTS,
    TrainedModel,
    assemble,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.training.spec import ModelSpec


def load_released(folder: Path, base_spec: ModelSpec) -> TrainedModel:
    """Loads what :meth:`TrainedModel.save` wrote.

    Args:
        folder: The released folder.
        base_spec: The model it was trained from; a whole model in ``folder`` replaces
            its path.

    Raises:
        ModelError: The folder is incomplete or does not fit ``base_spec``.
    """
    if (folder / "config.json").is_file():
        base_spec = replace(base_spec, path=str(folder), lora=None)
    base = load_base(base_spec)
    adapters = None
    if (folder / ADAPTER_CONFIG).is_file():
        adapters = read_adapters(base, folder)
    elif base_spec.lora is not None:
        raise ModelError(
            f"The folder {folder.name!r} has no {ADAPTER_CONFIG}.",
            "Name a folder written by a run with adapters.",
        )
    model = assemble(base_spec, base, adapters)
    if isinstance(model.module, TextClassifier):
        _read_head(folder, base_spec, model.module)
    return model


def _read_head(folder: Path, spec: ModelSpec, module: TextClassifier) -> None:
    try:
        fields: dict[str, Any] = json.loads((folder / HEAD_CONFIG).read_bytes())
        tensors = load_file(folder / HEAD_WEIGHTS)
    except (OSError, ValueError, SafetensorError):
        raise ModelError(
            f"The folder {folder.name!r} has no readable head.",
            "Name the folder that a classification run wrote.",
        ) from None
    found = (fields.get("num_labels"), fields.get("pooling"))
    if found != (spec.num_labels, spec.pooling):
        raise ModelError(
            f"The released head has {found[0]} labels and pooling {found[1]!r}; "
            f"{spec.num_labels} and {spec.pooling!r} are asked for.",
            "Use the job file of the run that wrote it.",
        )
    try:
        module.head.load_state_dict(tensors)
    except RuntimeError:
        raise ModelError(
            f"The head in {folder.name!r} has another shape than the base model.",
            "Use the base model it was trained on.",
        ) from None
