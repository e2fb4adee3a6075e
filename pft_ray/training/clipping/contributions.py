"""What one use of a parameter adds to each record's gradient.

Shape legend: B records, T positions of a record, m and n the two sides of a matrix
parameter. ``Outer`` and ``Lookup`` are both sums over positions of ``u_t v_t^T``; for
a lookup ``u_t`` is the one-hot row of the token. Neither forms the (B, m, n) tensor of
per-record gradients unless it is asked to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_ELEMENTS = 1 << 22
"""fp64 elements that a temporary of this package may hold (32 MB)."""

RECORDS_SUMMED = 64
"""Records whose factors are multiplied and summed at once."""

_CACHE_ELEMENTS = 1 << 18  # fp64 elements of a block that stays in the CPU's cache

_BLOCK = 64  # fp32 elements that are summed before fp64 takes over


@dataclass(frozen=True)
class Direct:
    """Per-record gradients that are formed at once: biases and norm weights.

    Attributes:
        values: (B, numel) tensor.
    """

    values: torch.Tensor


@dataclass(frozen=True)
class Outer:
    """The gradient sum_t left_t right_t^T of a matrix parameter (m, n).

    Attributes:
        left: (B, T, m).
        right: (B, T, n).
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """T, the positions of a record."""
        return int(self.left.shape[1])

    def factors(self) -> tuple[torch.Tensor, ...]:
        """Returns the floating-point factors, (B, T, ...) each."""
        return self.left, self.right

    def sequence(self, rows: slice) -> Outer:
        """Returns the records of ``rows`` as one record of all their positions."""
        left, right = self.left[rows], self.right[rows]
        return Outer(left.flatten(0, 1)[None], right.flatten(0, 1)[None])

    def per_record(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Returns the gradients of ``rows`` as (b, m * n) in ``dtype``."""
        left = self.left[rows].to(dtype)
        right = self.right[rows].to(dtype)
        return torch.bmm(left.transpose(1, 2), right).flatten(1)

    def add_to(self, formed: torch.Tensor) -> None:
        """Adds all records' gradients to ``formed`` (B, m * n), in place."""
        shape = (self.left.shape[2], self.right.shape[2])
        left = self.left.to(formed.dtype).transpose(1, 2)
        formed.view(-1, *shape).baddbmm_(left, self.right.to(formed.dtype))

    def absolute_sums(self, rows: slice) -> torch.Tensor:
        """Returns sum_t |left_t| |right_t| of ``rows``, (b,) fp64."""
        return (_norms(self.left[rows]) * _norms(self.right[rows])).sum(1)

    def without(self, dropped: torch.Tensor) -> Outer:
        """Returns the contribution with the ``dropped`` (B,) records set to zero."""
        mask = dropped[:, None, None]
        return Outer(self.left.masked_fill(mask, 0), self.right.masked_fill(mask, 0))

    def add_weighted_sum(self, out: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds sum_i weights_i G_i to ``out`` (m * n,), all in fp64."""
        rows, cols = self.left.shape[2], self.right.shape[2]
        matrix = out.view(rows, cols)
        for some in _record_blocks(len(weights)):
            right = self.right[some].double() * weights[some, None, None]
            right = right.flatten(0, 1)
            left = self.left[some].flatten(0, 1)
            step = max(1, CHUNK_ELEMENTS // max(1, left.shape[0]))
            for start in range(0, rows, step):
                part = left[:, start : start + step].double()
                matrix[start : start + step].addmm_(part.t(), right)


@dataclass(frozen=True)
class Lookup:
    """The gradient of a table (m, n) whose rows were looked up.

    Attributes:
        ids: (B, T) int64 row numbers.
        right: (B, T, n) output gradients; zero where the row takes no gradient.
        num_rows: m.
    """

    ids: torch.Tensor
    right: torch.Tensor
    num_rows: int

    @property
    def num_tokens(self) -> int:
        """T, the positions of a record."""
        return int(self.ids.shape[1])

    def factors(self) -> tuple[torch.Tensor, ...]:
        """Returns the floating-point factor, (B, T, n)."""
        return (self.right,)

    def sequence(self, rows: slice) -> Lookup:
        """Returns the records of ``rows`` as one record of all their positions."""
        right = self.right[rows].flatten(0, 1)[None]
        return Lookup(self.ids[rows].flatten()[None], right, self.num_rows)

    def per_record(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Returns the gradients of ``rows`` as (b, m * n) in ``dtype``."""
        right = self.right[rows].to(dtype)
        out = right.new_zeros(right.shape[0], self.num_rows, right.shape[2])
        index = self.ids[rows][:, :, None].expand_as(right)
        return out.scatter_add_(1, index, right).flatten(1)

    def add_to(self, formed: torch.Tensor) -> None:
        """Adds all records' gradients to ``formed`` (B, m * n), in place."""
        right = self.right.to(formed.dtype)
        index = self.ids[:, :, None].expand_as(right)
        table = formed.view(-1, self.num_rows, right.shape[2])
        table.scatter_add_(1, index, right)

    def absolute_sums(self, rows: slice) -> torch.Tensor:
        """Returns sum_t |right_t| of ``rows``, (b,) fp64."""
        return _norms(self.right[rows]).sum(1)

    def without(self, dropped: torch.Tensor) -> Lookup:
        """Returns the contribution with the ``dropped`` (B,) records set to zero."""
        right = self.right.masked_fill(dropped[:, None, None], 0)
        return Lookup(self.ids, right, self.num_rows)

    def add_weighted_sum(self, out: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds sum_i weights_i G_i to ``out`` (m * n,), all in fp64."""
        table = out.view(self.num_rows, self.right.shape[2])
        for some in _record_blocks(len(weights)):
            right = self.right[some].double() * weights[some, None, None]
            rows, places = self.ids[some].unique(return_inverse=True)  # type: ignore[no-untyped-call]
            part = right.new_zeros(len(rows), right.shape[2])
            part.index_add_(0, places.flatten(), right.flatten(0, 1))
            table.index_add_(0, rows, part)


Held = Outer | Lookup
"""A contribution that can be kept as its two factors."""

Contribution = Direct | Outer | Lookup


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the norms of (b, T, n) over the last dimension in fp64, (b, T)."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=2, dtype=torch.float64)
    return norms


def _record_blocks(num_records: int) -> Iterator[slice]:
    for start in range(0, num_records, RECORDS_SUMMED):
        yield slice(start, start + RECORDS_SUMMED)


def row_slices(num_rows: int, elements_each: int) -> Iterator[slice]:
    """Yields slices over ``num_rows`` rows of at most ``CHUNK_ELEMENTS`` elements."""
    step = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))


def squared_row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """Returns upper bounds of the squared norms of the rows of (B, P), (B,) fp64.

    fp64 is accumulated in fp64. fp32 is summed in blocks of n = 64 elements in fp32,
    which are summed in fp64. A sum of n squares errs, in any order, by at most n + 1
    roundings of u = 2**-24, a block's root and its square by two more: the result is
    made larger by (n + 4) u = 4.1e-6. A square below 2**-126 may be lost: rows whose
    squared norm is less than 2**-100 an element, or not finite, are done in fp64.

    Guarantee:
        No result is below the true squared norm by more than the rounding of fp64.
    """
    if matrix.dtype == torch.float64:
        return _squared_row_norms_fp64(matrix)
    size = matrix.shape[1]
    whole = size - size % _BLOCK
    blocks = matrix[:, :whole].reshape(len(matrix), whole // _BLOCK, _BLOCK)
    norms = torch.linalg.vector_norm(blocks, dim=2).double()
    total = torch.einsum("bk,bk->b", norms, norms)
    total += matrix[:, whole:].double().square().sum(1)
    total *= 1 + (_BLOCK + 4) * 2.0**-24
    coarse = ~((total >= size * 2.0**-100) & torch.isfinite(total))
    for row in coarse.nonzero()[:, 0].tolist():
        total[row] = _squared_row_norms_fp64(matrix[row : row + 1])[0]
    return total


def _squared_row_norms_fp64(matrix: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(matrix.shape[0], dtype=torch.float64)
    for part in _column_blocks(matrix):
        total += torch.einsum("bp,bp->b", part, part)
    return total


def add_weighted_rows(
    out: torch.Tensor, matrix: torch.Tensor, weights: torch.Tensor
) -> None:
    """Adds ``weights @ matrix`` to ``out`` (P,), converted to fp64 block by block."""
    start = 0
    for part in _column_blocks(matrix):
        out[start : start + part.shape[1]].addmv_(part.t(), weights)
        start += part.shape[1]


def _column_blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields fp64 copies of column blocks small enough for the CPU's cache."""
    step = max(64, _CACHE_ELEMENTS // max(1, matrix.shape[0]))
    for start in range(0, matrix.shape[1], step):
        yield matrix[:, start : start + step].double()
