"""What a phase computes with, apart from the records: all that a probe may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pft_ray.training.clipping import OneUnitClipper, PerRecordClipper
    from pft_ray.training.models import TrainedModel
    from pft_ray.training.optimizers import OptimizerSpec
    from pft_ray.training.prefix import Level


@dataclass(frozen=True)
class PhaseParts:
    """A started phase without its data: no table, no ids, no batch, nothing kept.

    Attributes:
        model: The model, with the phase's trainable set.
        clipper: What bounds contributions in this phase.
        optimizer: The phase's optimiser.
        trainable: What is trained.
        micro_batch: Records that run through the model together.
        length: T, the public padded length of a record.
        cache_level: What of the frozen part is kept.
        cache_depth: Layers below it, for the level ``hidden``.
    """

    model: TrainedModel
    clipper: PerRecordClipper | OneUnitClipper
    optimizer: OptimizerSpec
    trainable: str
    micro_batch: int
    length: int
    cache_level: Level
    cache_depth: int
