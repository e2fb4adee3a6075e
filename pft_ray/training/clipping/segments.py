"""Units of several records: which records belong together, and their sums.

Records of a unit lie side by side, so a unit is a slice of the batch. The gradient of
a unit is the sum over its records. For held factors that is one long sequence: the
positions of all its records follow each other, and inner products between positions of
different records count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.training.clipping.contributions import Held


def check_segments(segments: torch.Tensor, num_records: int) -> None:
    """Checks that ``segments`` numbers the units of the records in order.

    Raises:
        ValueError: It is not an int64 tensor (num_records,) that starts at 0 and goes
            up by 0 or 1 from each record to the next.
    """
    if segments.dtype != torch.int64 or segments.shape != (num_records,):
        msg = (
            f"segments must be int64 of shape ({num_records},), not "
            f"{segments.dtype} of shape {tuple(segments.shape)}"
        )
        raise ValueError(msg)
    steps = segments.diff()
    in_order = bool(((steps == 0) | (steps == 1)).all())
    if num_records and not (int(segments[0]) == 0 and in_order):
        msg = "segments must start at 0 and go up by 0 or 1 from record to record"
        raise ValueError(msg)


def unit_slices(segments: torch.Tensor) -> list[slice]:
    """Returns the records of every unit, in order."""
    ends = torch.bincount(segments).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def segment_sums(values: torch.Tensor, units: Sequence[slice]) -> torch.Tensor:
    """Returns the sums of the rows of ``values`` (B, n) over each unit, (U, n)."""
    return torch.stack([values[rows].sum(0) for rows in units])


def finite_records(uses: Sequence[Held]) -> torch.Tensor:
    """Returns which records have finite factors in all ``uses``, (B,) bool."""
    total = torch.zeros(uses[0].right.shape[0], dtype=torch.float64)
    for use in uses:
        for factor in use.factors():
            total += factor.flatten(1).sum(1, dtype=torch.float64)
    return torch.isfinite(total)
