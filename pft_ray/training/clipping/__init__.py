"""Per-record gradient clipping in one backward pass."""

from pft_ray.training.clipping.clipper import PerRecordClipper

__all__ = ["PerRecordClipper"]
