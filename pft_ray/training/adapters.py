"""LoRA adapters through peft: attach, write and read them in peft's plain layout."""

from __future__ import annotations

import copy
import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from pft_ray.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.training.spec import LoraSpec, Task

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_TASK_TYPES = {"classification": "FEATURE_EXTRACTION", "causal_lm": "CAUSAL_LM"}


def attach_adapters(
    model: nn.Module, spec: LoraSpec, task: Task, generator: torch.Generator
) -> Any:
    """Puts fresh adapters into ``model`` in place and returns its peft wrapper.

    The first factor is uniform, drawn from ``generator`` in the order of the modules;
    the second is zero, so the model starts as it was.

    Raises:
        ModelError: No module, or an unsupported one, has a target's name.
    """
    targets = _target_modules(model, spec)
    config = LoraConfig(
        task_type=_TASK_TYPES[task],
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        bias=spec.bias,
        modules_to_save=list(spec.modules_to_save) or None,
        target_modules=list(spec.targets if spec.layers is None else targets),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in targets.values()),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own calls
            wrapped = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"No adapter fits: {error}",
            "Name Linear modules of the model as targets.",
        ) from None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
            elif ".lora_B." in name:
                parameter.zero_()
    return wrapped


def _target_modules(model: nn.Module, spec: LoraSpec) -> dict[str, nn.Module]:
    """Returns the modules that get an adapter, by their full names.

    A module's layer is the first number in its name.
    """
    found: dict[str, nn.Module] = {}
    reached: set[int] = set()
    for name, module in model.named_modules():
        parts = name.split(".")
        numbers = [int(part) for part in parts if part.isdecimal()]
        layer = numbers[0] if numbers else -1
        if parts[-1] in spec.targets and (spec.layers is None or layer in spec.layers):
            found[name] = module
            reached.add(layer)
    if not found or not set(spec.layers or ()) <= reached:
        raise ModelError(
            f"No module named {' or '.join(spec.targets)} in "
            f"{'the model' if spec.layers is None else 'some of the layers named'}.",
            "Name Linear modules of the model as targets, and layers it has.",
        )
    return found


def write_adapters(wrapped: Any, base: str, folder: Path) -> None:
    """Writes the adapters; ``base`` is the name of the base model put beside them."""
    config = copy.copy(wrapped.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = base
    fields = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(fields, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def read_adapters(model: nn.Module, folder: Path) -> Any:
    """Puts the adapters of ``folder`` into ``model``; returns its peft wrapper.

    Raises:
        ModelError: They are damaged or do not fit the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own calls
            return PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(
            f"The adapters in {folder.name!r} do not load: {type(error).__name__}.",
            "Use the base model they were trained on.",
        ) from None
