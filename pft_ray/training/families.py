"""What is known about model families: inputs, masks, and how to enter at a layer."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pft_ray.training.batch import TokenBatch


@dataclass(frozen=True)
class Family:
    """A family whose inputs we prepare in full.

    Attributes:
        layers: Path of the list of layers inside the stack.
        causal: Whether a position sees only those before it.
        entry: How hidden states are fed to a layer above the first: in place of the
            output of the ``embeddings`` module, as ``inputs_embeds``, or not at all.
        has_position_table: Whether positions are looked up in a trained table. Then
            they are passed one row a record: a broadcast lookup loses the record.
    """

    layers: str
    causal: bool
    entry: Literal["embeddings", "inputs_embeds"] | None
    has_position_table: bool


FAMILIES = {
    "bert": Family("encoder.layer", False, "embeddings", True),
    "gpt2": Family("h", True, None, True),
    "llama": Family("layers", True, "inputs_embeds", False),
}


def family_of(stack: nn.Module) -> Family | None:
    """Returns the family of a transformers model without its head, or None."""
    return FAMILIES.get(getattr(getattr(stack, "config", None), "model_type", ""))


def model_inputs(
    family: Family | None, batch: TokenBatch, dtype: torch.dtype
) -> dict[str, Any]:
    """Returns the keyword arguments of the model's forward.

    For known families the attention mask is passed in its additive (B, 1, T, T) form.
    Otherwise the library drops it when no record of the batch is padded, and one
    record's length would change which kernel computes the others.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids}
    if family is None:
        return inputs | {"attention_mask": batch.attention_mask.long()}
    length = batch.input_ids.shape[1]
    visible = batch.attention_mask[:, None, None, :].expand(-1, 1, length, -1)
    if family.causal:
        visible = visible & torch.ones(length, length, dtype=torch.bool).tril()
        inputs["use_cache"] = False
    inputs["attention_mask"] = torch.zeros(visible.shape, dtype=dtype).masked_fill(
        ~visible, torch.finfo(dtype).min
    )
    if family.has_position_table:
        inputs["position_ids"] = torch.arange(length).repeat(len(batch), 1)
    if batch.hidden is not None and family.entry == "inputs_embeds":
        del inputs["input_ids"]
        inputs["inputs_embeds"] = batch.hidden.to(dtype)
    return inputs


def num_layers(stack: nn.Module, family: Family) -> int:
    """Returns the number of layers of the stack."""
    layers = stack.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return len(layers)


@contextmanager
def entered(stack: nn.Module, family: Family, batch: TokenBatch) -> Iterator[None]:
    """Makes the stack start at layer ``batch.depth`` from ``batch.hidden``."""
    hidden = batch.hidden
    if hidden is None:
        yield
        return
    with _only_layers(stack, family, slice(batch.depth, None)):
        if family.entry != "embeddings":
            yield
            return
        entry = stack.get_submodule("embeddings")
        entry.forward = lambda *_args, **_kwargs: hidden
        try:
            yield
        finally:
            del entry.forward


def run_prefix(
    stack: nn.Module, family: Family, batch: TokenBatch, depth: int
) -> torch.Tensor:
    """Returns the (B, T, H) input of layer ``depth`` >= 1, without gradients."""
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    layers = stack.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    handle = layers[depth - 1].register_forward_hook(keep)
    try:
        with torch.no_grad(), _only_layers(stack, family, slice(0, depth)):
            stack(**model_inputs(family, batch, next(stack.parameters()).dtype))
    finally:
        handle.remove()
    return seen[-1]


@contextmanager
def _only_layers(stack: nn.Module, family: Family, kept: slice) -> Iterator[None]:
    path, _, name = family.layers.rpartition(".")
    parent = stack.get_submodule(path)
    layers = getattr(parent, name)
    setattr(parent, name, layers[kept])
    try:
        yield
    finally:
        setattr(parent, name, layers)
