"""The keys of granted steps, derived from the key of their attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.owners import owners_of_rank
from pft_ray.crypto import derive_key
from pft_ray.mechanisms import assign_shares
from pft_ray.training.step import StepKeys

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan


def step_keys(
    plan: Plan,
    attempt_key: bytes,
    position: tuple[str, int, int],
    rank: int,
    world: int,
) -> StepKeys:
    """Returns what one rank needs for one step.

    Args:
        plan: The run's plan.
        attempt_key: Fresh 32 bytes, of this attempt alone.
        position: (run id, attempt, step).
        rank: The rank.
        world: Number of ranks of the attempt.

    Guarantee:
        Noise keys differ by share. Without owners the sampling key is equal on all
        ranks. With owners each owner's units have a sampling key of their own, which
        goes to the ranks that serve that owner alone: no other owner can tell which
        of its units are in a step, so sampling hides them from other owners too.
        Independent workers have a sampling key and a noise share each.
    """
    run, attempt, step = position
    shares = assign_shares(plan.num_shares, world, rank)
    sample_key = b""
    served: tuple[int, ...] = ()
    if plan.independent_workers > 1:
        served = tuple(index for index, _ in shares)
    elif plan.owners is None:
        sample_key = derive_key(attempt_key, "sample", run, attempt, step)
    else:
        served = owners_of_rank(rank, world, len(plan.owners.members))
    return StepKeys(
        attempt=attempt,
        step=step,
        sample_key=sample_key,
        shares=shares,
        noise_keys=tuple(
            derive_key(attempt_key, "noise", run, attempt, step, index)
            for index, _ in shares
        ),
        part_keys=tuple(
            (part, derive_key(attempt_key, "sample", run, attempt, step, part))
            for part in served
        ),
    )
