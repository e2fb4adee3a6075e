"""Loads base models: safetensors only, no remote code, every weight present."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from pft_ray.data.paths import pretrained_arguments, resolve_model_path
from pft_ray.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pft_ray.training.spec import ModelSpec

_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


def load_base(spec: ModelSpec, *, is_outline: bool = False) -> nn.Module:
    """Returns the base model in fp32, in evaluation mode.

    A pooler is taken off: nothing here uses it. Rates of dropout are 0 unless the
    specification asks for the model's own; attention then runs step by step, because
    the fused kernels draw masks of their own.

    Args:
        spec: The model.
        is_outline: Read names and shapes of the weights only (torch's meta device):
            everything is checked and nothing takes memory.

    Raises:
        ModelError: The source is missing, damaged or unknown, lacks weights, or has
            no dropout where the model's own is asked for.
    """
    source, options = pretrained_arguments(resolve_model_path(spec.path))
    if is_outline:
        options["device_map"] = {"": "meta"}
    if spec.dropout:
        options["attn_implementation"] = "eager"
    auto = AutoModel if spec.task == "classification" else AutoModelForCausalLM
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source, **options)
            rates = _zero_dropout(config, only_layers=spec.dropout)
            model, info = auto.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except _LOADING_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The model {spec.path!r} does not load: {reason}",
            "Give a model with config.json and safetensors weights that "
            f"transformers {transformers.__version__} knows without remote code.",
        ) from error
    _check_weights(spec.path, info)
    if spec.dropout and not any(rates):
        raise ModelError(
            f"The model {spec.path!r} has no dropout: all its rates are 0.",
            "Set model.dropout to false; model.lora.dropout drops inputs of adapters.",
        )
    return _plain(model, dropout=spec.dropout)


def _plain(model: Any, *, dropout: bool) -> nn.Module:
    base = model.base_model
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and not dropout:
            module.p = 0.0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    return model  # type: ignore[no-any-return]


def checkpoint_layers(model: Any, *, always: bool = True) -> None:
    """Lets every layer keep its input only and run again in the backward pass.

    Args:
        model: A transformers model.
        always: Tell the layers themselves, and nothing below them, that they train, so
            that nothing becomes random by it. Without it they must be told for each
            pass of training.

    Raises:
        ModelError: The library does not offer it for this model.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        layers = []
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no gradient checkpointing.",
            "Set model.gradient_checkpointing to false.",
        )
    for layer in layers if always else []:
        layer.training = True
        if isinstance(getattr(layer, "dropout", None), float):
            layer.dropout = 0.0


def _zero_dropout(config: Any, *, only_layers: bool) -> list[float]:
    """Sets the rates in a config to 0; returns those of dropout as they were.

    Args:
        config: Of a transformers model; configs inside it are done, too.
        only_layers: Set only the rate at which whole layers are left out.
    """
    rates = []
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            rates += _zero_dropout(value, only_layers=only_layers)
        if not isinstance(value, float):
            continue
        is_dropout = "dropout" in name or name.endswith("_pdrop")
        if name.endswith("layerdrop") or (is_dropout and not only_layers):
            setattr(config, name, 0.0)
        if is_dropout:
            rates.append(value)
    return rates


def _check_weights(path: str, info: dict[str, Any]) -> None:
    missing = [k for k in info["missing_keys"] if not _is_pooler(k)]
    mismatched = [str(k[0]) for k in info["mismatched_keys"]]
    absent = sorted(missing + mismatched)
    if absent:
        raise ModelError(
            f"The weights of {path!r} lack or misfit {len(absent)} tensors, among "
            f"them {absent[0]!r}.",
            "They would start at random: give a complete model of that task.",
        )


def _is_pooler(name: str) -> bool:
    return name.startswith("pooler.") or ".pooler." in name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars and load reports of the library out of our output."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
