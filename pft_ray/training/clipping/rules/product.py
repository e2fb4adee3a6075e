"""Matrix products: nn.Linear, GPT-2's Conv1D, LoRA's factors, ``x @ w``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pft_ray.training.clipping.contributions import Direct, Outer
from pft_ray.training.clipping.rules.base import (
    apply_function,
    positions_second,
    unwatched,
)

if TYPE_CHECKING:
    from pft_ray.training.clipping.recorder import Recorder


def multiply(
    recorder: Recorder,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    transposed: bool,
) -> torch.Tensor | None:
    """Returns x W^T + b, or x W + b when ``transposed``.

    Args:
        recorder: Takes the contributions of W and b.
        x: (B, ..., n) activations.
        weight: (m, n), or (n, m) when ``transposed``.
        bias: (m,), or None.
        transposed: Which of the two.

    Returns:
        (B, ..., m), or None when the shapes are others.
    """
    fits = weight.ndim == 2 and (bias is None or bias.ndim == 1)
    if not fits or x.ndim < 2 or recorder.is_constant(x):
        return None
    if not (recorder.is_constant(weight) and recorder.is_constant(bias)):
        return None
    owner = weight if recorder.wants(weight) else bias
    assert owner is not None
    x = recorder.by_record(x, owner)
    y: torch.Tensor = apply_function(
        _MatrixProduct, x, weight, bias, transposed, recorder
    )
    return y


class _MatrixProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transposed: bool,  # noqa: FBT001 - autograd passes by position
        recorder: Recorder,
    ) -> torch.Tensor:
        ctx.bias, ctx.transposed, ctx.recorder = bias, transposed, recorder
        y = functional.linear(x, weight.t() if transposed else weight, bias)
        wanted = recorder.wants(weight)
        ctx.save_for_backward(x.to(y.dtype) if wanted else None)
        ctx.weight, ctx.dtype = weight, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        weight, bias, recorder = ctx.weight, ctx.bias, ctx.recorder
        num_records = recorder.num_records
        with unwatched():
            outputs = positions_second(grad, num_records)
            if x is not None:
                inputs = positions_second(x, num_records)
                pair = (inputs, outputs) if ctx.transposed else (outputs, inputs)
                recorder.add(weight, Outer(*pair))
            if bias is not None and recorder.wants(bias):
                recorder.add(bias, Direct(outputs.sum(1)))
            grad_x = None
            if ctx.needs_input_grad[0]:
                matrix = weight.t() if ctx.transposed else weight
                grad_x = (grad @ matrix.to(grad.dtype)).to(ctx.dtype)
        return grad_x, None, None, None, None
