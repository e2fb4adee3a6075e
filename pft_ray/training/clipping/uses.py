"""What trained parameters do: the functions that have a recorded form.

Each form gets the recorder and the function's own arguments, and returns what the
function would return, or None when these arguments have no recorded form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pft_ray.training.clipping.rules.lookup import look_up
from pft_ray.training.clipping.rules.product import multiply
from pft_ray.training.clipping.rules.scale import scale_and_shift

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.training.clipping.recorder import Recorder

    Result = torch.Tensor | None


def _linear(
    recorder: Recorder,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> Result:
    return multiply(recorder, input, weight, bias, transposed=False)


def _addmm(
    recorder: Recorder, bias: Any, left: Any, right: Any, **scales: Any
) -> Result:
    if scales or recorder.is_constant(left):
        return None
    return multiply(recorder, left, right, bias, transposed=True)


def _matmul(
    recorder: Recorder,
    input: Any,
    other: Any,
) -> Result:
    if not isinstance(other, torch.Tensor) or not recorder.is_constant(other):
        return None
    return multiply(recorder, input, other, None, transposed=True)


def _embedding(
    recorder: Recorder,
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    *options: Any,
    **named: Any,
) -> Result:
    # max_norm rewrites the table and scale_grad_by_freq counts over the batch: one
    # record would change another's gradient. norm_type means nothing without the
    # first; sparse is how autograd would store what it never forms here.
    given = dict(
        zip(("max_norm", "norm_type", "scale_grad_by_freq"), options, strict=False)
    )
    given |= named
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        return None
    return look_up(recorder, input, weight, padding_idx)


def _layer_norm(
    recorder: Recorder,
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Result:
    if recorder.wants(input):
        return None
    normal = functional.layer_norm(input, normalized_shape, eps=eps)
    recorder.follow(input, normal)
    return scale_and_shift(recorder, normal, weight, bias)


def _rms_norm(
    recorder: Recorder,
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> Result:
    if recorder.wants(input):
        return None
    normal = functional.rms_norm(input, normalized_shape, eps=eps)
    recorder.follow(input, normal)
    return scale_and_shift(recorder, normal, weight, None)


def _mul(recorder: Recorder, first: Any, second: Any) -> Result:
    if recorder.is_constant(first):
        first, second = second, first
    if not (isinstance(first, torch.Tensor) and recorder.is_constant(second)):
        return None
    return scale_and_shift(recorder, first, second, None)


def _add(recorder: Recorder, first: Any, second: Any, *, alpha: float = 1) -> Result:
    if recorder.is_constant(first):
        first, second = second, first
    if alpha != 1 or not isinstance(first, torch.Tensor):
        return None
    if not recorder.is_constant(second):
        return None
    return scale_and_shift(recorder, first, None, second)


_T = torch.Tensor

USES: dict[Callable[..., Any], Callable[..., Result]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    _T.matmul: _matmul,
    _T.__matmul__: _matmul,
    _T.mm: _matmul,
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    torch.mul: _mul,
    _T.mul: _mul,
    _T.__mul__: _mul,
    _T.__rmul__: _mul,
    torch.add: _add,
    _T.add: _add,
    _T.__add__: _add,
    _T.__radd__: _add,
    _T.add_: _add,  # x += b: the sum is returned, and x's storage is left alone
    _T.__iadd__: _add,
}

RESHAPES = {_T.view, _T.reshape, torch.reshape, _T.flatten, torch.flatten}

FLAT_SAFE = {
    *(_T.add, _T.mul, _T.sub, _T.div, _T.__add__, _T.__mul__, _T.__radd__, _T.__rmul__),
    *(torch.add, torch.mul, _T.pow, torch.pow, torch.tanh, _T.tanh, torch.sigmoid),
    *(_T.to, _T.float, _T.contiguous, _T.type_as, _T.bfloat16, _T.half, _T.double),
    *(functional.gelu, functional.relu, functional.silu, functional.dropout),
    *(functional.linear, torch.addmm, functional.layer_norm, functional.rms_norm),
    *(torch.relu, torch.square, torch.rsqrt, _T.sigmoid, _T.relu, functional.sigmoid),
}
"""Functions that work on each row alone and keep the rows' order."""
