"""Chooses how to clip a model, by trying made-up records."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from pft_ray.errors import ModelError
from pft_ray.telemetry import get_logger
from pft_ray.training.clipping.clipper import PerRecordClipper
from pft_ray.training.clipping.listing import UnsupportedUseError
from pft_ray.training.clipping.single import OneUnitClipper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from pft_ray.accounting.plan import Clipping

    Losses = Callable[[slice], torch.Tensor]

_TOLERANCE = 1e-3

_LOG = get_logger("pft_ray.clipping")


def choose_clipper(
    module: nn.Module,
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    losses_of: Losses,
    num_records: int,
    mode: Clipping = "flat",
    *,
    tolerance: float = _TOLERANCE,
    **limits: int,
) -> tuple[PerRecordClipper | OneUnitClipper, str]:
    """Returns a clipper that is right for the model, and why it is a slow one.

    Made-up records are run one by one with plain autograd, then all at once. Only when
    sums and norms agree is the fast way taken; else every unit runs by itself.

    Args:
        module: The model.
        named_parameters: What is trained, in the order of the flat vector.
        losses_of: Returns the losses of a slice of the made-up records.
        num_records: How many there are, at least 2.
        mode: How gradients are bounded.
        tolerance: By how much of the largest norm the two ways may differ.
        limits: ``most_records`` and ``limit_bytes`` of the clipper.

    Returns:
        The clipper, and "" or the reason why units run one by one.

    Raises:
        ModelError: The model cannot be trained with a bounded contribution at all: it
            has a batch normalisation, changes its own buffers in the forward pass,
            gives losses that are not one a record or not finite, or does not use a
            parameter.
    """
    alone = OneUnitClipper(module, named_parameters, mode=mode)
    buffers = [(name, b.clone()) for name, b in module.named_buffers()]
    total = torch.zeros(alone.num_parameters, dtype=torch.float64)
    norms = torch.zeros(num_records, dtype=torch.float64)
    unused = {name for name, _ in named_parameters}
    for index in range(num_records):
        one = slice(index, index + 1)
        gradient, norm = alone.plain_sum(partial(losses_of, one), 1)
        total += gradient
        norms[index] = norm[0]
        unused &= alone.unused
    _check_used(unused)
    _check_plain(module, norms, buffers)
    try:
        fast = PerRecordClipper(module, named_parameters, mode=mode, **limits)
        found, found_norms = fast.plain_sum(
            lambda: losses_of(slice(0, num_records)), num_records
        )
    except UnsupportedUseError as error:
        return alone, _slow(error.message)
    scale = float(norms.max()) * tolerance + 1e-9
    equal = bool(((found_norms - norms).abs() <= scale).all())
    if not equal or not bool((found - total).norm() <= scale):
        return alone, _slow(
            "The gradient of a made-up record changes with the record beside it, as "
            "in mixtures of experts."
        )
    return fast, ""


def _slow(reason: str) -> str:
    _LOG.warning("units run one by one, which is slower: %s", reason)
    return reason


def _check_used(unused: set[str]) -> None:
    if unused:
        raise ModelError(
            f"Parameter {min(unused)!r} got no gradient: the loss of no made-up record "
            "depends on it.",
            "Freeze it, or check that its module takes part in the forward pass.",
        )


def _check_plain(
    module: nn.Module, norms: torch.Tensor, buffers: list[tuple[str, torch.Tensor]]
) -> None:
    if not bool(torch.isfinite(norms).all()):
        raise ModelError(
            "The gradient of a made-up record is not finite.",
            "Use a model whose weights are intact, in fp32 or bf16.",
        )
    now = dict(module.named_buffers())
    for name, before in buffers:
        if not torch.equal(now[name].nan_to_num(), before.nan_to_num()):
            raise ModelError(
                f"The model changes its buffer {name!r} while it runs, past the noise.",
                "Use a layer without running statistics.",
            )
