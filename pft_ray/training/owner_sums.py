"""Clipped sums of units whose owners have clip norms of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.training.types import ClippedSum

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pft_ray.accounting.owners import Owners
    from pft_ray.training.step import Work


def clipped_by_owner(
    work: Work,
    positions: NDArray[np.int64],
    clip_norm: float,
    unit_owners: NDArray[np.int64],
    owners: Owners,
) -> ClippedSum:
    """Returns the sum of the units' contributions, each clipped to its owner's C_i.

    Args:
        work: Bounds and adds the contributions of units.
        positions: The units in the step.
        clip_norm: C of the phase, which the noise follows.
        unit_owners: int64, number of the owner of each of this rank's units.
        owners: The plan's owners.

    Guarantee:
        Leaving one unit of owner i out changes the sum by at most C_i = C times its
        clip scale, and the balance by at most 1.
    """
    if owners.method == "sample":  # all have the clip norm C
        return work.clipped_sum(positions, clip_norm)
    total = work.clipped_sum(positions[:0], clip_norm)
    vector, balance = total.vector, total.balance
    for number, owner in enumerate(owners.members):
        own = positions[unit_owners[positions] == number]
        if len(own) == 0:
            continue
        part = work.clipped_sum(own, clip_norm * owner.clip_scale)
        vector = vector + part.vector
        if balance is not None and part.balance is not None:
            balance += part.balance
    return ClippedSum(vector, clip_norm, balance)
