"""Scales and shifts: the affine part of norms, biases that are added, gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pft_ray.training.clipping.contributions import Direct
from pft_ray.training.clipping.rules.base import apply_function, unwatched

if TYPE_CHECKING:
    from pft_ray.training.clipping.recorder import Recorder


def scale_and_shift(
    recorder: Recorder,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> torch.Tensor | None:
    """Returns x * scale + shift, broadcast as torch does.

    Args:
        recorder: Takes the contributions of ``scale`` and ``shift``.
        x: (B, ...) activations, or (B * positions, n).
        scale: Tensor without a record dimension, or None for 1.
        shift: Likewise, or None for 0.

    Returns:
        The sum, or None when a factor has as many dimensions as ``x`` and would meet
        the records, or when flattened positions would meet more than the last one.
    """
    if recorder.is_constant(x) or x.ndim < 2:
        return None
    if not (recorder.is_constant(scale) and recorder.is_constant(shift)):
        return None
    owner = scale if recorder.wants(scale) else shift
    assert owner is not None
    for factor in (scale, shift):
        if factor is not None and not _meets_no_records(factor, x):
            return None
        if factor is not None and recorder.is_flat(x) and factor.ndim > 1:
            return None
    x = recorder.by_record(x, owner)
    y: torch.Tensor = apply_function(_ScaleShift, x, scale, shift, recorder)
    return y


def _meets_no_records(factor: torch.Tensor, x: torch.Tensor) -> bool:
    if factor.ndim > x.ndim:
        return False
    return factor.ndim < x.ndim or factor.shape[0] == 1


class _ScaleShift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
        recorder: Recorder,
    ) -> torch.Tensor:
        ctx.scale, ctx.shift, ctx.recorder = scale, shift, recorder
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(x if recorder.wants(scale) else None)
        y = x if scale is None else x * scale
        return y.clone() if shift is None and scale is None else _shifted(y, shift)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        scale, shift, recorder = ctx.scale, ctx.shift, ctx.recorder
        with unwatched():
            if x is not None:
                _add(recorder, scale, grad * x)
            if shift is not None and recorder.wants(shift):
                _add(recorder, shift, grad)
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = grad if scale is None else grad * scale
                grad_x = grad_x.sum_to_size(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, None


def _shifted(y: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return y if shift is None else y + shift


def _add(recorder: Recorder, factor: torch.Tensor, values: torch.Tensor) -> None:
    """Sums ``values`` over all that ``factor`` was broadcast to, but the records."""
    if recorder.num_records != values.shape[0]:  # flattened positions
        values = values.reshape(recorder.num_records, -1, values.shape[-1])
    own = (1,) * (values.ndim - factor.ndim) + tuple(factor.shape)
    summed = [i for i, size in enumerate(own) if size == 1 and i > 0]
    values = values.sum(summed, keepdim=True) if summed else values
    recorder.add(factor, Direct(values.flatten(1)))
