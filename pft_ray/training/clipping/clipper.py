"""Per-record clipping with one forward and one backward pass ("book-keeping").

Formulas: Goodfellow 2015 (arXiv:1510.01799), Li et al. 2022 (arXiv:2110.05679), Bu et
al. 2023 (arXiv:2210.00038). The weight gradient of autograd is never formed: what
trained parameters do is recorded with activations and output gradients instead.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from pft_ray.accounting.events import check_positive
from pft_ray.training.clipping.gradients import RecordGradients
from pft_ray.training.clipping.listing import (
    UnsupportedUseError,
    check_trained,
    sum_of_finite,
)
from pft_ray.training.clipping.modes import factors_of, groups_of
from pft_ray.training.clipping.recorder import Recorder, run_backward
from pft_ray.training.clipping.segments import check_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from pft_ray.accounting.plan import Clipping
    from pft_ray.training.clipping.contributions import Contribution

DEFAULT_LIMIT_BYTES = 1 << 30


class PerRecordClipper:
    """Sums per-record gradients of a model, each clipped to a norm.

    The model is plain: nothing is wrapped or replaced, so saving, generating and peft
    just work. A :class:`Recorder` watches while :meth:`clipped_sum` runs.

    Args:
        module: The model; it must keep the first dimension of every activation that
            meets a trained parameter equal to the number of records.
        named_parameters: What is trained, in the order of the flat vector.
        limit_bytes: Memory for per-record gradients that are kept formed, of
            ``most_records`` records; what lies beyond is held as factors.
        most_records: Records that run together at most. What is formed follows it and
            not the batch at hand: else leaving a record out would change how the
            others are rounded.
        mode: ``flat``, ``automatic`` or ``per_layer`` (:mod:`.modes`).

    Raises:
        ModelError: A parameter is frozen or not the model's, a trainable one is not
            listed, or the model has a batch normalisation.
    """

    def __init__(
        self,
        module: nn.Module,
        named_parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        most_records: int = 64,
        mode: Clipping = "flat",
    ) -> None:
        self._parameters = list(named_parameters)
        self._index = {id(p): i for i, (_, p) in enumerate(self._parameters)}
        check_trained(module, self._parameters)
        self._module = module
        self._limit_bytes = limit_bytes // most_records
        self._mode = mode
        self._groups = groups_of([name for name, _ in self._parameters], mode)
        self._sizes = [0] * (max(self._groups, default=0) + 1)
        for group, (_, parameter) in zip(self._groups, self._parameters, strict=True):
            self._sizes[group] += parameter.numel()

    @property
    def num_parameters(self) -> int:
        """P, the length of the flat vector."""
        return sum(parameter.numel() for _, parameter in self._parameters)

    def clipped_sum(
        self,
        losses_fn: Callable[[], torch.Tensor],
        num_records: int,
        clip_norm: float,
        *,
        segments: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sum of the units' gradients, each scaled to norm <= C.

        A unit is one record, or all records with one number in ``segments``.

        Args:
            losses_fn: Runs the model and returns (B,) losses, one a record, each a
                function of that record alone (never a mean over the batch).
            num_records: B; 0 gives zeros without running the model.
            clip_norm: C.
            segments: (B,) int64, the unit of each record: nondecreasing, from 0 to
                U - 1, each at least once. The gradients of a unit's records are summed
                and the sum is clipped once. None makes every record its own unit.

        Returns:
            The flat (P,) fp64 sum, and the (U,) fp64 norms before clipping (upper
            bounds within rounding). Records whose loss or gradient is not finite
            contribute exactly zero; a unit without any other record, or whose sum is
            not finite, contributes zero too and has the norm NaN.

        Raises:
            UnsupportedUseError: A parameter is used in a way that has no batched
                per-record gradient, or a layer lost the record dimension.
            ModelError: The losses are not one a record, or depend on nothing trained.
            ValueError: ``segments`` is not of that form.

        Guarantee:
            Removing one unit changes the sum by at most C in L2 norm: its
            contribution is scaled by min(1, C/|g_u|) with a norm that is never below
            the one of what is added, in the arithmetic really used. A record that is
            not finite is replaced by zeros before records meet in a matrix product.
        """
        check_positive(clip_norm, "clip_norm")
        if segments is not None:
            check_segments(segments, num_records)
        return self._weighted_sum(losses_fn, num_records, clip_norm, segments)

    def plain_sum(
        self,
        losses_fn: Callable[[], torch.Tensor],
        num_records: int,
        *,
        segments: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the unclipped sum and the norms: for baselines, without guarantee."""
        return self._weighted_sum(losses_fn, num_records, None, segments)

    @torch.no_grad()
    def _weighted_sum(
        self,
        losses_fn: Callable[[], torch.Tensor],
        num_records: int,
        clip_norm: float | None,
        segments: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if num_records == 0:
            return torch.zeros(self.num_parameters, dtype=torch.float64), torch.zeros(
                0, dtype=torch.float64
            )
        gradients, finite = self._collect(losses_fn, num_records)
        if segments is not None:
            finite = gradients.merge(segments, finite)
        squared = gradients.squared_norms()
        norms = squared.sum(0).sqrt()
        dropped = ~(finite & torch.isfinite(norms))
        gradients.drop(dropped)
        if clip_norm is None:
            weights = torch.ones_like(squared)
        else:
            weights = factors_of(squared.sqrt(), clip_norm, self._sizes, self._mode)
        weights = weights.masked_fill(dropped, 0.0)
        return gradients.weighted_sum(weights), norms.masked_fill(dropped, torch.nan)

    def _collect(
        self, losses_fn: Callable[[], torch.Tensor], num_records: int
    ) -> tuple[RecordGradients, torch.Tensor]:
        """Runs forward and backward; returns gradients and finite losses."""
        sizes = [(name, parameter.numel()) for name, parameter in self._parameters]
        gradients = RecordGradients(sizes, num_records, self._limit_bytes, self._groups)

        def add(parameter: torch.Tensor, contribution: Contribution) -> None:
            gradients.add(self._index[id(parameter)], contribution)

        watched = Recorder(self._module, self._parameters, num_records, add)
        with self._cleared(), watched, torch.enable_grad():
            total, finite = sum_of_finite(losses_fn(), num_records)
            run_backward(total)
        return gradients, finite

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Refuses what autograd itself gave to a parameter, past the recorder."""
        try:
            yield
            for name, parameter in self._parameters:
                if parameter.grad is not None:
                    raise UnsupportedUseError(
                        f"Parameter {name!r} is used where its per-record gradient is "
                        "not seen.",
                        "Freeze it, or train LoRA adapters on Linear layers.",
                    )
        finally:
            for _, parameter in self._parameters:
                parameter.grad = None
