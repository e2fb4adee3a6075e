"""Per-record gradient clipping in one backward pass."""

from pft_ray.training.clipping.clipper import PerRecordClipper
from pft_ray.training.clipping.listing import UnsupportedUseError
from pft_ray.training.clipping.single import OneUnitClipper
from pft_ray.training.clipping.trial import choose_clipper

__all__ = [
    "OneUnitClipper",
    "PerRecordClipper",
    "UnsupportedUseError",
    "choose_clipper",
]
