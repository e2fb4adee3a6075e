"""Checks what is to be trained before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pft_ray.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence


class UnsupportedUseError(ModelError):
    """A trained parameter is used in a way that batched clipping does not know."""


def check_trained(
    module: nn.Module, named_parameters: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Checks that what is listed is exactly what the model trains.

    Args:
        module: The whole model.
        named_parameters: The parameters to be trained.

    Raises:
        ModelError: A listed parameter is frozen or not the model's, a trainable one
            is not listed, or a batch normalisation, which mixes records, or a table
            with ``max_norm``, which records rewrite, is anywhere in the model.
    """
    for path, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ModelError(
                f"Module {path!r} is a {type(part).__name__}: it mixes the records "
                "of a batch, so no record's contribution can be bounded.",
                "Replace it by GroupNorm or LayerNorm.",
            )
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm:
            raise ModelError(
                f"Module {path!r} has max_norm: looking a row up rewrites it, past "
                "clipping and noise.",
                "Set max_norm to None.",
            )
    trainable = {id(p): n for n, p in module.named_parameters() if p.requires_grad}
    listed = {id(p): n for n, p in named_parameters}
    for key, name in listed.items():
        if key not in trainable:
            raise ModelError(
                f"Parameter {name!r} is frozen or belongs to no module of the model.",
                "Set requires_grad on it or leave it out.",
            )
    for key, name in trainable.items():
        if key not in listed:
            raise ModelError(
                f"Parameter {name!r} is trainable and not in the list of trained "
                "parameters.",
                "Freeze it or list it.",
            )


def sum_of_finite(
    losses: torch.Tensor, num_records: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sum of the losses that are finite, and which are, (B,) bool.

    Raises:
        ModelError: The losses are not one a record, or depend on nothing trained.
    """
    if losses.shape != (num_records,) or not losses.requires_grad:
        raise ModelError(
            f"The loss has shape {tuple(losses.shape)} for {num_records} records, or "
            "does not depend on a trained parameter.",
            "Return one loss a record; a mean over a batch is unsound.",
        )
    finite = torch.isfinite(losses.detach())
    return torch.where(finite, losses, torch.zeros_like(losses)).sum(), finite
