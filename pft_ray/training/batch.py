"""Token tables as tensors, ready for a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.data.tokens import TokenTable


@dataclass(frozen=True)
class TokenBatch:
    """B records as tensors, padded to the plan's length T.

    Attributes:
        input_ids: int64 (B, T), padded on the right.
        lengths: int64 (B,), tokens that are not padding, at least 1.
        targets: int64 (B,) class indices, or None.
        loss_mask: bool (B, T), which tokens are predicted, or None.
        hidden: (B, T, H) input of layer ``depth``, when the layers below were run
            before; else None.
        depth: Number of layers that ``hidden`` has passed.
        features: (B, H) pooled features, when the whole backbone was run before.
        seeds: int64 (B,), where the records' dropout masks start from; a function of
            each record's own id.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    depth: int = 0
    features: torch.Tensor | None = None
    seeds: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def take(self, rows: torch.Tensor) -> TokenBatch:
        """Returns copies of the records at ``rows``, in that order."""
        return self._at(rows)

    def at(self, rows: slice) -> TokenBatch:
        """Returns some of the records."""
        return self._at(rows)

    def _at(self, rows: slice | torch.Tensor) -> TokenBatch:
        parts: dict[str, Any] = {
            name: value[rows]
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **parts)

    @property
    def attention_mask(self) -> torch.Tensor:
        """Bool (B, T): which positions are tokens."""
        positions = torch.arange(self.input_ids.shape[1])
        return positions[None, :] < self.lengths[:, None]


def check_positions(positions: NDArray[np.int64], num_units: int) -> None:
    """Checks that ``positions`` are distinct and lie in [0, num_units).

    Raises:
        ValueError: They are or do not.
    """
    rows = np.asarray(positions, dtype=np.int64)
    distinct = np.unique(rows)
    if len(distinct) != len(rows):
        msg = "a unit is in the batch twice"
        raise ValueError(msg)
    if len(rows) and not 0 <= distinct[0] <= distinct[-1] < num_units:
        msg = f"positions must lie in [0, {num_units})"
        raise ValueError(msg)


def batch_of(table: TokenTable, rows: NDArray[np.int64]) -> TokenBatch:
    """Returns the rows of ``table`` at ``rows``, in that order."""
    index = torch.from_numpy(rows)
    targets, loss_mask = table.targets, table.loss_mask
    return TokenBatch(
        input_ids=torch.from_numpy(table.input_ids)[index].long(),
        lengths=torch.from_numpy(table.lengths)[index].long(),
        targets=None if targets is None else torch.from_numpy(targets)[index],
        loss_mask=(
            None if loss_mask is None else torch.from_numpy(loss_mask)[index].bool()
        ),
        seeds=torch.from_numpy(table.digests[rows, :8].copy().view("<i8")[:, 0]),
    )


def synthetic_batch(
    num_records: int, length: int, vocab_size: int, *, causal: bool
) -> TokenBatch:
    """Returns made-up records that depend on the shapes alone: for probes.

    Every second record is shorter, so that padding is exercised too.
    """
    generator = torch.Generator().manual_seed(20_240_101)
    shape = (num_records, length)
    ids = torch.randint(0, vocab_size, shape, generator=generator)
    lengths = torch.full((num_records,), length)
    lengths[1::2] = max(1, length // 2)
    seeds = torch.arange(num_records)
    if causal:
        mask = torch.ones(shape, dtype=torch.bool)
        return TokenBatch(ids, lengths, loss_mask=mask, seeds=seeds)
    targets = torch.zeros(num_records, dtype=torch.long)
    return TokenBatch(ids, lengths, targets=targets, seeds=seeds)
