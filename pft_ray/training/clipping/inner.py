"""Per-record norms from inner products ("ghost norms"), never below the truth.

A per-record gradient that is a sum over positions of ``u_t v_t^T`` has the squared
norm ``sum_{t,s} <u_t, u_s> <v_t, v_s>`` (Goodfellow 2015; Li et al. 2022 for
sequences). A parameter that is used several times, such as an embedding table that is
also the output layer, needs the cross terms of its uses as well. Such sums cancel:
their rounding error follows the absolute terms, not the norm. So everything here runs
in fp64 and a bound on the rounding error is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pft_ray.training.clipping.contributions import (
    RECORDS_SUMMED,
    Held,
    Lookup,
    Outer,
    row_slices,
    squared_row_norms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RECORDS = 4096
"""Most records of a batch: the bound below must not depend on how many there are."""

_UNIT_ROUNDOFF = 2.0**-53


def squared_norms(uses: Sequence[Held], numel: int) -> torch.Tensor:
    """Returns upper bounds of |sum over uses of G_i|^2 for every record i, (B,) fp64.

    Takes the cheapest of three ways: inner products between positions, forming the
    gradients of a few records at a time in fp64, or, if all uses are lookups, summing
    the rows that were looked up.

    Args:
        uses: The uses of one parameter, all with the same B.
        numel: Elements of the parameter.

    Guarantee:
        The result is at least the true squared norm plus what the weighted sum of
        :meth:`Outer.add_weighted_sum` can err by: with u = 2**-53, S the sum of
        |u_t| |v_t| over all positions and uses, and k the length of the summations
        with the most records there may be, k u S^2 is added. A cancelled or negative
        inner product never gives zero, and no result depends on other records.
    """
    num_tokens = sum(use.num_tokens for use in uses)
    sides = max(_sides(use) for use in uses)
    lookups = [use for use in uses if isinstance(use, Lookup)]
    if len(lookups) == len(uses):
        exact = _by_rows(lookups)
    elif num_tokens * sides < numel or lookups:
        exact = _by_inner_products(uses)
    else:
        exact = _by_forming(uses, numel)
    absolute = sum_absolute(uses)
    summed = RECORDS_SUMMED * num_tokens + MAX_RECORDS // RECORDS_SUMMED
    length = 2 * (num_tokens**2 + sides) + 4 * summed
    bound = length * _UNIT_ROUNDOFF * absolute.square()
    return exact.clamp(min=0) + bound  # clamp keeps NaN


def sum_absolute(uses: Sequence[Held]) -> torch.Tensor:
    """Returns S_i = sum over uses and positions of |u_t| |v_t|, (B,) fp64."""
    num_records = uses[0].right.shape[0]
    total = torch.zeros(num_records, dtype=torch.float64)
    for use in uses:
        for rows in row_slices(num_records, use.num_tokens * _sides(use)):
            total[rows] += use.absolute_sums(rows)
    return total


def _sides(use: Held) -> int:
    left = use.left.shape[2] if isinstance(use, Outer) else 1
    return int(left + use.right.shape[2])


def _by_inner_products(uses: Sequence[Held]) -> torch.Tensor:
    num_records = uses[0].right.shape[0]
    total = torch.zeros(num_records, dtype=torch.float64)
    for index, first in enumerate(uses):
        for second in uses[index:]:
            factor = 1.0 if second is first else 2.0
            total += factor * _inner(first, second)
    return total


def _by_rows(uses: Sequence[Lookup]) -> torch.Tensor:
    """Sums what meets in the same row of the same record, then squares."""
    num_records, num_rows = uses[0].right.shape[0], uses[0].num_rows
    first = num_rows * torch.arange(num_records)[:, None]
    keys = torch.cat([(use.ids + first).flatten() for use in uses])
    found, places = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    rows = torch.zeros(len(found), uses[0].right.shape[2], dtype=torch.float64)
    start = 0
    for use in uses:
        stop = start + use.ids.numel()
        rows.index_add_(0, places[start:stop], use.right.double().flatten(0, 1))
        start = stop
    total = torch.zeros(num_records, dtype=torch.float64)
    return total.index_add_(0, found // num_rows, rows.square().sum(1))


def _by_forming(uses: Sequence[Held], numel: int) -> torch.Tensor:
    num_records = uses[0].right.shape[0]
    total = torch.empty(num_records, dtype=torch.float64)
    for rows in row_slices(num_records, numel):
        gradients = uses[0].per_record(rows, torch.float64)
        for use in uses[1:]:
            gradients += use.per_record(rows, torch.float64)
        total[rows] = squared_row_norms(gradients)
    return total


def _inner(first: Held, second: Held) -> torch.Tensor:
    """Returns <G_i of first, G_i of second> for every record, (B,) fp64."""
    num_records = first.right.shape[0]
    out = torch.empty(num_records, dtype=torch.float64)
    size = max(_sides(first), _sides(second)) * max(first.num_tokens, second.num_tokens)
    for rows in row_slices(num_records, size + first.num_tokens * second.num_tokens):
        right = torch.bmm(
            first.right[rows].double(), second.right[rows].double().transpose(1, 2)
        )
        out[rows] = (right * _left_products(first, second, rows)).sum((1, 2))
    return out


def _left_products(first: Held, second: Held, rows: slice) -> torch.Tensor:
    """Returns <u_t of first, u_s of second>, (b, T first, T second) fp64."""
    if isinstance(first, Outer) and isinstance(second, Outer):
        left = first.left[rows].double()
        return torch.bmm(left, second.left[rows].double().transpose(1, 2))
    if isinstance(first, Lookup) and isinstance(second, Lookup):
        same = first.ids[rows][:, :, None] == second.ids[rows][:, None, :]
        return same.double()
    if isinstance(first, Outer) and isinstance(second, Lookup):
        left = first.left[rows]
        index = second.ids[rows][:, None, :].expand(-1, left.shape[1], -1)
        return left.gather(2, index).double()
    return _left_products(second, first, rows).transpose(1, 2)
