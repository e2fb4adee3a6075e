"""A text classifier: a transformer, pooling over a record's tokens, a linear head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pft_ray.errors import ModelError
from pft_ray.training.families import entered, family_of, model_inputs

if TYPE_CHECKING:
    from pft_ray.training.batch import TokenBatch
    from pft_ray.training.spec import Pooling


class TextClassifier(nn.Module):
    """Backbone, pooling and head.

    Args:
        backbone: A transformers model without a task head, hidden size H.
        num_labels: Outputs of the head.
        pooling: ``mean`` over the tokens, the first (``cls``) or the ``last`` token.
        generator: Source of the head's initial weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_labels: int,
        pooling: Pooling,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        size = getattr(backbone.config, "hidden_size", None)
        if not isinstance(size, int):
            raise ModelError(
                f"A {type(backbone).__name__} does not say its hidden size.",
                "Use a model whose config has hidden_size.",
            )
        self.head = nn.Linear(size, num_labels, dtype=torch.float32)
        with torch.no_grad():
            self.head.weight.normal_(std=0.02, generator=generator)
            self.head.bias.zero_()

    def features(self, batch: TokenBatch) -> torch.Tensor:
        """Returns the (B, H) pooled features of a batch."""
        if batch.features is not None:
            return batch.features
        family = family_of(self.backbone)
        dtype = next(self.backbone.parameters()).dtype
        inputs = model_inputs(family, batch, dtype)
        if family is None:
            output = self.backbone(**inputs)
        else:
            with entered(self.backbone, family, batch):
                output = self.backbone(**inputs)
        return pool(output.last_hidden_state, batch, self.pooling)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Returns the (B, num_labels) logits of a batch."""
        logits: torch.Tensor = self.head(
            self.features(batch).to(self.head.weight.dtype)
        )
        return logits


def pool(hidden: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> torch.Tensor:
    """Returns one vector a record, (B, H), from its (B, T, H) hidden states."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(batch)), batch.lengths - 1]
    visible = batch.attention_mask[:, :, None]
    total = torch.where(visible, hidden, torch.zeros_like(hidden)).sum(1)
    return total / batch.lengths[:, None].to(hidden.dtype)
