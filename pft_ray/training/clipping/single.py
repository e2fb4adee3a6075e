"""Clipping one unit at a time with plain autograd: slow, and right for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pft_ray.accounting.events import check_positive
from pft_ray.training.clipping.listing import check_trained, sum_of_finite
from pft_ray.training.clipping.modes import factors_of, groups_of
from pft_ray.training.clipping.recorder import gradients_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from pft_ray.accounting.plan import Clipping


class OneUnitClipper:
    """Clips the gradient of one unit, made by an ordinary backward pass.

    Records of different units never meet, so whatever a model does between the
    records of a batch, and however it uses its parameters, the bound holds.

    Args:
        module: The model.
        named_parameters: What is trained, in the order of the flat vector.
        mode: ``flat``, ``automatic`` or ``per_layer`` (:mod:`.modes`).

    Attributes:
        unused: Parameters that the last unit's loss did not depend on. It may be a
            unit's own affair, such as an expert that none of its tokens went to.

    Raises:
        ModelError: A parameter is frozen or not the model's, a trainable one is not
            listed, or the model has a batch normalisation.
    """

    def __init__(
        self,
        module: nn.Module,
        named_parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        mode: Clipping = "flat",
    ) -> None:
        check_trained(module, named_parameters)
        self._parameters = list(named_parameters)
        self._mode = mode
        self.unused: set[str] = set()
        groups = groups_of([name for name, _ in self._parameters], mode)
        numels = [p.numel() for _, p in self._parameters]
        self._group_of = torch.repeat_interleave(
            torch.tensor(groups), torch.tensor(numels)
        )

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
        """Returns the clipped gradient of one unit, (P,) fp64, and its norm, (1,).

        Args:
            losses_fn: Runs the model and returns (B,) losses of the unit's records.
            num_records: B; 0 gives zeros without running the model.
            clip_norm: C.
            segments: All equal: the records are one unit's. Without it B is 1.

        Raises:
            ModelError: The losses are not one a record, or depend on nothing trained.

        Guarantee:
            The sum has norm at most C; a unit that is not finite gives zero and NaN.
        """
        check_positive(clip_norm, "clip_norm")
        _check_one(num_records, segments)
        total, norms = self.plain_sum(losses_fn, num_records, segments=segments)
        if num_records == 0 or not bool(torch.isfinite(norms[0])):
            return total, norms
        sizes = torch.bincount(self._group_of)
        squared = torch.zeros(len(sizes), dtype=torch.float64)
        squared.index_add_(0, self._group_of, total.square())
        factors = factors_of(
            squared.sqrt()[:, None], clip_norm, sizes.tolist(), self._mode
        )
        return total * factors[self._group_of, 0], norms

    def plain_sum(
        self,
        losses_fn: Callable[[], torch.Tensor],
        num_records: int,
        *,
        segments: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the unclipped gradient and its norm: for baselines."""
        if num_records == 0:
            empty = torch.zeros(self.num_parameters, dtype=torch.float64)
            return empty, torch.zeros(0, dtype=torch.float64)
        _check_one(num_records, segments)
        flat = self._gradient(losses_fn, num_records)
        norm = flat.norm().reshape(1)
        if not bool(torch.isfinite(norm)):
            return torch.zeros_like(flat), torch.full_like(norm, torch.nan)
        return flat, norm

    def _gradient(
        self, losses_fn: Callable[[], torch.Tensor], num_records: int
    ) -> torch.Tensor:
        with torch.enable_grad():
            total, finite = sum_of_finite(losses_fn(), num_records)
            roots = [p for _, p in self._parameters]
            grads = gradients_of(total, roots)
        pairs = list(zip(self._parameters, grads, strict=True))
        self.unused = {name for (name, _), grad in pairs if grad is None}
        parts = [p.detach() * 0 if g is None else g.detach() for (_, p), g in pairs]
        flat = torch.cat([part.flatten().double() for part in parts])
        return flat if bool(finite.any()) else torch.full_like(flat, torch.nan)


def _check_one(num_records: int, segments: torch.Tensor | None) -> None:
    several = num_records > 1 and (
        segments is None or bool((segments != segments[0]).any())
    )
    if several:
        msg = "records of several units in a pass that is for one"
        raise ValueError(msg)
