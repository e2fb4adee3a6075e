"""How a unit's gradient is bounded: as a whole, normalised, or layer by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pft_ray.training.clipping.factors import clip_factors, largest_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.accounting.plan import Clipping

STABILITY = 0.01
"""gamma of automatic clipping (Bu et al. 2022, arXiv:2206.07136, section 4)."""


def groups_of(names: Sequence[str], mode: Clipping) -> list[int]:
    """Returns the group of each parameter, counted from 0.

    Layer by layer, a parameter belongs to the layer whose number is the first in its
    name; those without one are a group together. Otherwise there is one group.
    """
    if mode != "per_layer":
        return [0] * len(names)
    layers = []
    for name in names:
        numbers = [int(part) for part in name.split(".") if part.isdecimal()]
        layers.append(numbers[0] if numbers else -1)
    order = {layer: index for index, layer in enumerate(sorted(set(layers)))}
    return [order[layer] for layer in layers]


def factors_of(
    norms: torch.Tensor, clip_norm: float, sizes: Sequence[int], mode: Clipping
) -> torch.Tensor:
    """Returns what each unit's gradient is multiplied by, group by group.

    Args:
        norms: (K, B) fp64 norms of the K groups, or upper bounds of them.
        clip_norm: C, for all groups together.
        sizes: Parameters of each group.
        mode: ``flat`` and ``adaptive``, whose C moves, give min(1, C / norm);
            ``automatic`` C / (norm + 0.01), which leaves no unit as it was;
            ``per_layer`` min(1, C_k / norm_k) with C_k = C / sqrt(K).

    Returns:
        (K, B) fp64 factors, 0 where a norm is not finite.

    Guarantee:
        The scaled gradient of a unit has norm at most C over all groups together:
        sqrt(sum of C_k^2) = C. So the noise is that of flat clipping.
    """
    share = clip_norm
    if len(sizes) > 1:  # rounded down, so that the squares sum to at most C^2
        share = clip_norm / math.sqrt(len(sizes)) * (1 - 2.0**-50)
    pairs = zip(norms, sizes, strict=True)
    if mode == "automatic":
        rows = [largest_factors(n, share, size) for n, size in pairs]
        largest = torch.stack(rows)  # 0 where a norm is not finite
        return torch.where(
            largest > 0, torch.minimum(largest, share / (norms + STABILITY)), 0.0
        )
    return torch.stack([clip_factors(n, share, size) for n, size in pairs])
