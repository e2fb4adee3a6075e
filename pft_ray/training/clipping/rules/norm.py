"""nn.LayerNorm, nn.RMSNorm and the RMSNorm classes of Llama-like models.

All are a normalisation without parameters, followed by a scale and a shift. The first
part is left to autograd; the second records normalised inputs and output gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pft_ray.training.clipping.contributions import Direct
from pft_ray.training.clipping.rules.base import (
    apply_function,
    positions_first,
    runs_forward_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.training.clipping.rules.base import Sink


class LayerNormRule:
    """Rule of nn.LayerNorm, with or without bias."""

    def accepts(self, module: nn.Module) -> bool:
        """Returns whether ``module`` is a plain layer normalisation."""
        return runs_forward_of(module, nn.LayerNorm)

    def bind(self, module: nn.Module, sink: Sink) -> Callable[..., Any]:
        """Returns a forward that gives the module's output and feeds ``sink``."""
        assert isinstance(module, nn.LayerNorm)

        def forward(x: torch.Tensor) -> Any:
            normalised = nn.functional.layer_norm(
                x, module.normalized_shape, eps=module.eps
            )
            return apply_function(
                _ScaleShift, normalised, module.weight, module.bias, sink
            )

        return forward


class RMSNormRule:
    """Rule of nn.RMSNorm and of classes that compute weight * x / rms(x)."""

    def accepts(self, module: nn.Module) -> bool:
        """Returns whether ``module`` scales x / rms(x), tried on a fixed input."""
        if runs_forward_of(module, nn.RMSNorm):
            return True
        if not type(module).__name__.endswith("RMSNorm") or _epsilon(module) is None:
            return False
        own = dict(module.named_parameters())
        weight = own.get("weight")
        return len(own) == 1 and weight is not None and _is_plain_rms(module, weight)

    def bind(self, module: nn.Module, sink: Sink) -> Callable[..., Any]:
        """Returns a forward that gives the module's output and feeds ``sink``."""

        def forward(x: torch.Tensor) -> Any:
            return apply_function(
                _ScaleShift, _rms_normalise(module, x), module.weight, None, sink
            )

        return forward


class _ScaleShift(torch.autograd.Function):
    """x * weight (+ bias)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        sink: Sink,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.sink = bias, sink
        scaled = weight * x
        return scaled if bias is None else scaled + bias

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        sink: Sink = ctx.sink
        if sink.wants(weight):
            values = positions_first(grad * x, weight.ndim).sum(1)
            sink.add(weight, Direct(values.flatten(1)))
        if ctx.bias is not None and sink.wants(ctx.bias):
            values = positions_first(grad, weight.ndim).sum(1)
            sink.add(ctx.bias, Direct(values.flatten(1)))
        grad_x = grad * weight if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None


def _epsilon(module: nn.Module) -> float | None:
    value = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value if isinstance(value, float) else None


def _rms_normalise(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.RMSNorm):
        return nn.functional.rms_norm(x, module.normalized_shape, eps=module.eps)
    epsilon = _epsilon(module)
    assert epsilon is not None
    wide = x.to(torch.float32)  # as the models themselves do, whatever the input is
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return wide.to(x.dtype)


def _is_plain_rms(module: nn.Module, weight: torch.Tensor) -> bool:
    probe = torch.linspace(-2.0, 3.0, 2 * weight.numel(), dtype=weight.dtype)
    probe = probe.reshape(2, -1)
    with torch.no_grad():
        expected = type(module).forward(module, probe)
        found = weight * _rms_normalise(module, probe)
    return bool(torch.allclose(expected, found, rtol=1e-5, atol=1e-6))
