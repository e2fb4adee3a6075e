"""Weighted sums of per-record gradients of one matrix, a few of its rows at a time.

The gradients of large matrices do not fit into memory for all records at once. They
are formed tile by tile in fp32, measured, weighted, added up in fp64 and dropped. What
a record adds is measured as it is added, so nothing rests on the rounding of its norm.
Tied uses are added up inside a tile, so their cross terms are exact, and lookups stay
sparse: a token touches the tile of its row only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pft_ray.training.clipping.contributions import (
    Held,
    Lookup,
    Outer,
    add_weighted_rows,
    squared_row_norms,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TILE_ELEMENTS = 1 << 15
"""fp32 elements of one record's tile; what a tile is must not depend on how many
records there are, or a record's norm would."""


def tile_norms(uses: Sequence[Held]) -> torch.Tensor:
    """Returns upper bounds of the squared norms of the formed gradients, (B,) fp64."""
    total = torch.zeros(uses[0].right.shape[0], dtype=torch.float64)
    for _, tile in _tiles(uses):
        total += squared_row_norms(tile.flatten(1))
    return total


def add_tiles(
    out: torch.Tensor,
    uses: Sequence[Held],
    weights: torch.Tensor,
    squared: torch.Tensor,
) -> None:
    """Adds sum_i weights_i G_i to ``out`` (m * n,) fp64.

    Args:
        out: The flat gradient.
        uses: The uses of the matrix; dropped records may be zero now.
        weights: (B,) fp64.
        squared: (B,) fp64, what the squared norm of each record was taken to be.

    Guarantee:
        What a record adds, over all tiles, has at most the squared norm ``squared``
        times its weight squared, however its gradient was rounded: every tile is
        measured, and one that is longer than what the tiles before it have left is
        scaled down to that.
    """
    cols = uses[0].right.shape[2]
    left = squared.clone()
    for start, tile in _tiles(uses):
        rows = tile.flatten(1)
        found = squared_row_norms(rows)
        if not bool(torch.isfinite(found).all()):  # beyond fp32, though its norm is not
            rows = rows.masked_fill(~torch.isfinite(found)[:, None], 0.0)
            found = squared_row_norms(rows)
        shrink = torch.where(found > left, (left / found).sqrt(), 1.0)
        left = (left - found).clamp(min=0.0)
        part = out[start * cols : start * cols + rows.shape[1]]
        add_weighted_rows(part, rows, weights * shrink)


def _tiles(uses: Sequence[Held]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (first row, gradients (B, rows of the tile, n)) of all tiles."""
    cols = uses[0].right.shape[2]
    num_rows = next(u.left.shape[2] for u in uses if isinstance(u, Outer))
    dtype = torch.promote_types(uses[0].right.dtype, torch.float32)
    lookups = [_Sorted(use) for use in uses if isinstance(use, Lookup)]
    step = max(1, _TILE_ELEMENTS // max(1, cols))
    for start in range(0, num_rows, step):
        stop = min(num_rows, start + step)
        tile: torch.Tensor | None = None
        for use in uses:
            if not isinstance(use, Outer):
                continue
            left = use.left[:, :, start:stop].transpose(1, 2).to(dtype)
            right = use.right.to(dtype)
            if tile is None:
                tile = torch.bmm(left, right)
            else:
                tile.baddbmm_(left, right)
        assert tile is not None
        for lookup in lookups:
            lookup.add_to(tile, start, stop)
        yield start, tile


class _Sorted:
    """The tokens of a lookup in the order of their rows."""

    def __init__(self, use: Lookup) -> None:
        self._ids, order = use.ids.flatten().sort(stable=True)
        self._records = order // use.num_tokens
        self._right = use.right.flatten(0, 1)[order]

    def add_to(self, tile: torch.Tensor, start: int, stop: int) -> None:
        """Adds the tokens of rows ``start`` to ``stop`` to ``tile`` (B, rows, n)."""
        limits = torch.searchsorted(self._ids, torch.tensor([start, stop]))
        mine = slice(*limits.tolist())
        index = self._records[mine] * (stop - start) + self._ids[mine] - start
        tile.flatten(0, 1).index_add_(0, index, self._right[mine].to(tile.dtype))
