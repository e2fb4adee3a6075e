"""nn.Linear and the Conv1D of GPT-2, which is a Linear with its weight transposed.

LoRA's two factors are nn.Linear modules, so adapters need no rule of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pft_ray.training.clipping.contributions import Direct, Outer
from pft_ray.training.clipping.rules.base import (
    apply_function,
    positions_first,
    runs_forward_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.training.clipping.rules.base import Sink


class LinearRule:
    """Rule of nn.Linear and transformers' Conv1D."""

    def accepts(self, module: nn.Module) -> bool:
        """Returns whether ``module`` is a plain matrix product."""
        return runs_forward_of(module, nn.Linear, Conv1D)

    def bind(self, module: nn.Module, sink: Sink) -> Callable[..., Any]:
        """Returns a forward that gives the module's output and feeds ``sink``."""
        transposed = isinstance(module, Conv1D)

        def forward(x: torch.Tensor) -> Any:
            return apply_function(
                _MatrixProduct, x, module.weight, module.bias, transposed, sink
            )

        return forward


class _MatrixProduct(torch.autograd.Function):
    """x W^T + b, or x W + b when ``transposed``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transposed: bool,  # noqa: FBT001 - autograd passes by position
        sink: Sink,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.transposed, ctx.sink = bias, transposed, sink
        matrix = weight.t() if transposed else weight
        return nn.functional.linear(x, matrix, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        sink: Sink = ctx.sink
        if sink.wants(weight):
            inputs, outputs = positions_first(x.detach()), positions_first(grad)
            left, right = (inputs, outputs) if ctx.transposed else (outputs, inputs)
            sink.add(weight, Outer(left, right))
        if ctx.bias is not None and sink.wants(ctx.bias):
            sink.add(ctx.bias, Direct(positions_first(grad).sum(1)))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight.t() if ctx.transposed else weight)
        return grad_x, None, None, None, None
