"""The per-record gradients of all parameters during one backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pft_ray.training.clipping.contributions import (
    Contribution,
    Direct,
    Held,
    Lookup,
    Outer,
    add_weighted_rows,
    squared_row_norms,
)
from pft_ray.training.clipping.costs import (
    factors_are_cheaper,
    inner_products_are_cheaper,
    tiles_are_cheaper,
)
from pft_ray.training.clipping.inner import MAX_RECORDS, squared_norms
from pft_ray.training.clipping.listing import UnsupportedUseError
from pft_ray.training.clipping.segments import (
    finite_records,
    segment_sums,
    unit_slices,
)
from pft_ray.training.clipping.tiles import add_tiles, tile_norms

if TYPE_CHECKING:
    from collections.abc import Sequence


_LARGEST_FORMED = 1e38  # beyond it a gradient overflows when it is formed in fp32

_FORMED_ERROR = 1e-5
"""Room that a squared norm in fp64 leaves for the gradient that is formed in fp32."""


@dataclass
class _Slot:
    """One parameter: formed per-record gradients, or the factors of its uses."""

    name: str
    numel: int
    offset: int
    group: int = 0
    formed: torch.Tensor | None = None
    held: list[Held] = field(default_factory=list)
    owned: bool = False
    bounds: torch.Tensor | None = None


class RecordGradients:
    """Collects contributions while autograd runs; then gives norms and sums.

    Gradients are formed ("instantiated") while they fit in the memory limit, because
    forming them replaces the weight gradient's own matrix product; else the two
    factors are held, and norms come from inner products or from tiles.

    Args:
        names_and_sizes: (name, numel) of the parameters, in the flat order.
        num_records: B.
        limit_bytes: Memory that formed gradients of one record may take.
        groups: Group of each parameter, 0 to K - 1; None for one group.
    """

    def __init__(
        self,
        names_and_sizes: Sequence[tuple[str, int]],
        num_records: int,
        limit_bytes: int,
        groups: Sequence[int] | None = None,
    ) -> None:
        if num_records > MAX_RECORDS:
            msg = f"at most {MAX_RECORDS} records at once, not {num_records}"
            raise ValueError(msg)
        self._num_records = num_records
        self._free_bytes = limit_bytes
        self._slots: list[_Slot] = []
        self._segments: torch.Tensor | None = None
        self._units: list[slice] | None = None
        self.num_parameters = 0
        groups = groups or [0] * len(names_and_sizes)
        for (name, numel), group in zip(names_and_sizes, groups, strict=True):
            self._slots.append(_Slot(name, numel, self.num_parameters, group))
            self.num_parameters += numel
        self._num_groups = max(groups, default=0) + 1

    def add(self, index: int, contribution: Contribution) -> None:
        """Adds one use of parameter ``index``; called during the backward pass.

        Raises:
            UnsupportedUseError: The first dimension of the activation is not the
                records', or a parameter is both held and formed.
        """
        slot = self._slots[index]
        first = (
            contribution.values
            if isinstance(contribution, Direct)
            else contribution.right
        )
        if first.shape[0] != self._num_records:
            raise UnsupportedUseError(
                f"The layer of parameter {slot.name!r} saw a first dimension of "
                f"{first.shape[0]} for {self._num_records} records.",
                "Its input must keep one row for every record (broadcast positions "
                "and routed tokens do not); freeze the parameter or use LoRA on "
                "attention layers only.",
            )
        if isinstance(contribution, Direct):
            if slot.held:
                raise UnsupportedUseError(
                    f"Parameter {slot.name!r} is both a matrix and a scale.",
                    "Freeze it.",
                )
            self._form(slot, contribution.values)
        elif slot.formed is not None and slot.owned:
            contribution.add_to(slot.formed)
        elif slot.formed is not None or self._fits(slot, contribution):
            self._form(slot, _formed(contribution))
            slot.owned = True
        else:
            slot.held.append(contribution)

    def _fits(self, slot: _Slot, contribution: Held) -> bool:
        size = slot.numel * max(4, contribution.right.element_size())
        if slot.held or isinstance(contribution, Lookup) or size > self._free_bytes:
            return False
        rows, cols = contribution.left.shape[2], contribution.right.shape[2]
        if factors_are_cheaper(contribution.num_tokens, rows, cols):
            return False
        self._free_bytes -= size
        return True

    def _form(self, slot: _Slot, values: torch.Tensor) -> None:
        values = values if values.element_size() >= 4 else values.float()
        slot.owned = slot.formed is not None
        slot.formed = values if slot.formed is None else slot.formed + values

    @property
    def missing(self) -> list[str]:
        """Names of parameters that got no contribution at all."""
        return [s.name for s in self._slots if s.formed is None and not s.held]

    def merge(self, segments: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        """Makes the units of ``segments`` the rows that everything else is about.

        Records that are not finite, by ``finite`` (B,) or by their gradients, are
        replaced by zeros before the sums over units.

        Returns:
            (U,) bool: whether a unit has a finite record.
        """
        for slot in self._slots:
            if slot.formed is not None:
                sums = slot.formed.sum(1, dtype=torch.float64)
                finite = finite & torch.isfinite(sums)
            if slot.held:
                finite = finite & finite_records(slot.held)
        self.drop(~finite)
        self._segments = segments
        self._units = unit_slices(segments)
        for slot in self._slots:
            if slot.formed is not None:
                slot.formed = segment_sums(slot.formed, self._units)
        return torch.stack([finite[rows].any() for rows in self._units])

    def squared_norms(self) -> torch.Tensor:
        """Returns fp64 upper bounds of the squared norms over each group.

        Shape (K, B), or (K, U) after :meth:`merge`.
        """
        units = self._units
        num_rows = self._num_records if units is None else len(units)
        totals = torch.zeros(self._num_groups, num_rows, dtype=torch.float64)
        for slot in self._slots:
            total = totals[slot.group]
            if slot.formed is not None:
                total += squared_row_norms(slot.formed)
            if slot.held and units is None:
                total += _held_norms(slot)
            elif slot.held and units is not None:
                for number, rows in enumerate(units):
                    uses = [use.sequence(rows) for use in slot.held]
                    total[number] += squared_norms(uses, slot.numel)[0]
        return totals

    def drop(self, dropped: torch.Tensor) -> None:
        """Replaces all that the ``dropped`` records contributed by zero.

        ``dropped`` is (B,) bool, or (U,) for whole units after :meth:`merge`.
        """
        if not bool(dropped.any()):
            return
        records = dropped if self._segments is None else dropped[self._segments]
        for slot in self._slots:
            if slot.formed is not None:
                slot.formed = slot.formed.masked_fill(dropped[:, None], 0)
            slot.held = [use.without(records) for use in slot.held]

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """Returns sum_i weights_i g_i over all records or units, flat (P,) fp64.

        Everything that was collected is dropped on the way.

        Args:
            weights: (K, B) fp64, or (K, U) after :meth:`merge`, by group.
        """
        flat = torch.zeros(self.num_parameters, dtype=torch.float64)
        for slot in self._slots:
            out = flat[slot.offset : slot.offset + slot.numel]
            units = weights[slot.group]
            records = units if self._segments is None else units[self._segments]
            if slot.formed is not None:
                add_weighted_rows(out, slot.formed, units)
            if slot.bounds is not None:
                add_tiles(out, slot.held, records, slot.bounds)
            else:
                for use in slot.held:
                    use.add_weighted_sum(out, records)
            slot.formed, slot.held = None, []  # not needed again: free it now
        return flat


def _held_norms(slot: _Slot) -> torch.Tensor:
    """Returns squared norms of held uses; sets the slot's bounds if tiles are added."""
    outer = [use for use in slot.held if isinstance(use, Outer)]
    num_tokens = sum(use.num_tokens for use in slot.held)
    if not outer or outer[0].right.dtype == torch.float64:
        return squared_norms(slot.held, slot.numel)
    if not tiles_are_cheaper(num_tokens):
        return squared_norms(slot.held, slot.numel)
    rows, cols = outer[0].left.shape[2], outer[0].right.shape[2]
    if inner_products_are_cheaper(num_tokens, rows, cols):
        squared = squared_norms(slot.held, slot.numel) * (1 + _FORMED_ERROR)
        slot.bounds = squared.masked_fill(squared > _LARGEST_FORMED**2, torch.inf)
    else:
        slot.bounds = tile_norms(slot.held)
    return slot.bounds


def _formed(contribution: Held) -> torch.Tensor:
    dtype = torch.promote_types(contribution.right.dtype, torch.float32)
    return contribution.per_record(slice(None), dtype)
