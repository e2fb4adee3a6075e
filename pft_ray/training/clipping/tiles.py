"""Per-record gradients of one matrix, formed a few of its rows at a time, twice.

The gradients of a large matrix, such as an output layer, do not fit into memory for all
records at once. They are formed tile by tile: once for the norms, once more for the
weighted sum. What is added is measured again, so nothing rests on both being equal.
Tied uses are added up inside a tile, so their cross terms are exact, and lookups stay
sparse: a token touches the tile of its row only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pft_ray.training.clipping.contributions import (
    CHUNK_ELEMENTS,
    Held,
    Lookup,
    Outer,
    add_weighted_rows,
    squared_row_norms,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PASS_COST = 10
"""Cost of reading a formed element, in units of four multiplications."""


def tiles_are_cheaper(uses: Sequence[Held]) -> bool:
    """Returns whether forming twice beats inner products in fp64.

    Forming twice in fp32 costs what one product of the factors costs in fp64, and
    passes over the m n elements. Inner products cost T^2 (m + n) more.
    """
    outer = [use for use in uses if isinstance(use, Outer)]
    if not outer or outer[0].right.dtype == torch.float64:
        return False
    rows, cols = outer[0].left.shape[2], outer[0].right.shape[2]
    num_tokens = sum(use.num_tokens for use in uses)
    return bool(num_tokens**2 * (rows + cols) > _PASS_COST * rows * cols)


def tile_norms(uses: Sequence[Held]) -> torch.Tensor:
    """Returns upper bounds of the tiles' squared norms, (B, num_tiles) fp64."""
    return torch.stack([squared_row_norms(t.flatten(1)) for _, t in _tiles(uses)], 1)


def add_tiles(
    out: torch.Tensor,
    uses: Sequence[Held],
    weights: torch.Tensor,
    squared: torch.Tensor,
) -> None:
    """Adds sum_i weights_i G_i to ``out`` (m * n,) fp64.

    Args:
        out: The flat gradient.
        uses: What :func:`tile_norms` was given; dropped records may be zero now.
        weights: (B,) fp64.
        squared: What :func:`tile_norms` returned.

    Guarantee:
        What a record adds in a tile has at most the squared norm ``squared`` times
        its weight squared: a tile that comes out longer than it was measured is
        scaled down.
    """
    cols = uses[0].right.shape[2]
    for index, (start, tile) in enumerate(_tiles(uses)):
        rows = tile.flatten(1)
        again = squared_row_norms(rows)
        shrink = (squared[:, index] / again).clamp(max=1.0).sqrt()
        shrink = torch.where(again > squared[:, index], shrink, 1.0)
        part = out[start * cols : start * cols + rows.shape[1]]
        add_weighted_rows(part, rows, weights * shrink)


def _tiles(uses: Sequence[Held]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (first row, gradients (B, rows of the tile, n)) of all tiles."""
    num_records, _, cols = uses[0].right.shape
    num_rows = next(u.left.shape[2] for u in uses if isinstance(u, Outer))
    dtype = torch.promote_types(uses[0].right.dtype, torch.float32)
    lookups = [_Sorted(use) for use in uses if isinstance(use, Lookup)]
    step = max(1, CHUNK_ELEMENTS // max(1, num_records * cols))
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
