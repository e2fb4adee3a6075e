"""nn.Embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pft_ray.training.clipping.contributions import Lookup
from pft_ray.training.clipping.rules.base import apply_function, runs_forward_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.training.clipping.rules.base import Sink


class EmbeddingRule:
    """Rule of nn.Embedding.

    ``max_norm`` rewrites the table and ``scale_grad_by_freq`` counts over the whole
    batch: both let one record change another's gradient and are not accepted.
    """

    def accepts(self, module: nn.Module) -> bool:
        """Returns whether ``module`` is a plain table lookup."""
        if not isinstance(module, nn.Embedding):
            return False
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return plain and runs_forward_of(module, nn.Embedding)

    def bind(self, module: nn.Module, sink: Sink) -> Callable[..., Any]:
        """Returns a forward that gives the module's output and feeds ``sink``."""

        def forward(ids: torch.Tensor) -> Any:
            return apply_function(
                _TableLookup, module.weight, ids, module.padding_idx, sink
            )

        return forward


class _TableLookup(torch.autograd.Function):
    """Rows of a table; the padding row takes no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        ids: torch.Tensor,
        padding_idx: int | None,
        sink: Sink,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, ids)
        ctx.padding_idx, ctx.sink = padding_idx, sink
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        weight, ids = ctx.saved_tensors
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids == ctx.padding_idx)[..., None], 0)
        flat_ids = ids.reshape(ids.shape[0], -1).long()
        right = grad.reshape(ids.shape[0], -1, weight.shape[1])
        ctx.sink.add(weight, Lookup(flat_ids, right, weight.shape[0]))
        return None, None, None, None
