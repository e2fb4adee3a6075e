"""Lookups of rows in a table: nn.Embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pft_ray.training.clipping.contributions import Lookup
from pft_ray.training.clipping.rules.base import apply_function, unwatched

if TYPE_CHECKING:
    from pft_ray.training.clipping.recorder import Recorder


def look_up(
    recorder: Recorder,
    ids: torch.Tensor,
    table: torch.Tensor,
    padding_idx: int | None,
) -> torch.Tensor | None:
    """Returns the rows of ``table`` at ``ids``; the padding row takes no gradient.

    Args:
        recorder: Takes the contributions of the table.
        ids: (B, ...) row numbers; (1, ...) and (T,) mean the same for every record.
        table: (m, n).
        padding_idx: The padding row, negative from the end, or None.
    """
    if table.ndim != 2:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += table.shape[0]
    ids = recorder.by_record(ids, table, num_last=0)
    rows: torch.Tensor = apply_function(_TableLookup, table, ids, padding_idx, recorder)
    return rows


class _TableLookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: torch.Tensor,
        ids: torch.Tensor,
        padding_idx: int | None,
        recorder: Recorder,
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding_idx, ctx.recorder = table, padding_idx, recorder
        return functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (ids,) = ctx.saved_tensors
        table, num_records = ctx.table, ctx.recorder.num_records
        with unwatched():
            if ctx.padding_idx is not None:
                grad = grad.masked_fill((ids == ctx.padding_idx)[..., None], 0)
            flat_ids = ids.reshape(num_records, -1).long()
            right = grad.reshape(num_records, -1, table.shape[1])
            ctx.recorder.add(table, Lookup(flat_ids, right, table.shape[0]))
        return None, None, None, None
