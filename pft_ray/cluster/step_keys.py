"""The keys of granted steps, derived from the key of their attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.owners import owners_of_rank
from pft_ray.accounting.tolerance import needed_shares, num_parties
from pft_ray.crypto import derive_key
from pft_ray.errors import GrantRefusedError
from pft_ray.mechanisms import assign_shares
from pft_ray.training.step import StepKeys

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan


def check_roster(plan: Plan, num_ranks: int) -> None:
    """Refuses a roster that cannot carry the plan's noise, before any share is drawn.

    Raises:
        GrantRefusedError: More ranks than shares, or, where absences are tolerated,
            fewer than the shares that a step needs.
    """
    if num_ranks > plan.num_shares:
        raise GrantRefusedError(
            f"{num_ranks} workers for {plan.num_shares} noise shares: some would send "
            "sums without noise.",
            "Raise training.noise_shares or lower cluster.workers.",
        )
    if plan.tolerate_missing and num_ranks < needed_shares(plan):
        raise GrantRefusedError(
            f"{num_ranks} of {plan.num_shares} workers are there, and at most "
            f"{plan.tolerate_missing} may be absent: the noise would not be whole.",
            "Bring more of them back; the run resumes with the same command.",
        )


def common_sample_key(
    plan: Plan, attempt_key: bytes, position: tuple[str, int, int]
) -> bytes:
    """Returns the sampling key that all ranks share in a step; empty when none is.

    Args:
        plan: The run's plan.
        attempt_key: Fresh 32 bytes, of this attempt alone.
        position: (run id, attempt, step).
    """
    if plan.independent_workers > 1 or plan.owners is not None:
        return b""
    return derive_key(attempt_key, "sample", *position)


def step_keys(
    plan: Plan,
    attempt_key: bytes,
    position: tuple[str, int, int],
    rank: int,
    world: int,
    sample_key: bytes | None = None,
) -> StepKeys:
    """Returns what one rank needs for one step.

    Args:
        plan: The run's plan.
        attempt_key: Fresh 32 bytes, of this attempt alone.
        position: (run id, attempt, step).
        rank: The rank.
        world: Number of ranks of the attempt.
        sample_key: :func:`common_sample_key` of the position, when it is at hand.

    Guarantee:
        Noise keys differ by share. Without owners the sampling key is equal on all
        ranks. With owners each owner's units have a sampling key of their own, which
        goes to the ranks that serve that owner alone: no other owner can tell which
        of its units are in a step, so sampling hides them from other owners too.
        Independent workers have a sampling key and a noise share each. Where absences
        are tolerated, rank r of a short roster is what it is in a full one: nobody
        plays the owners, workers and shares of those who are absent.
    """
    run, attempt, step = position
    parties = num_parties(plan, world)
    shares = assign_shares(plan.num_shares, parties, rank)
    served: tuple[int, ...] = ()
    if plan.independent_workers > 1:
        served = tuple(index for index, _ in shares)
    elif plan.owners is not None:
        served = owners_of_rank(rank, parties, len(plan.owners.members))
    if sample_key is None:
        sample_key = common_sample_key(plan, attempt_key, position)
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
        num_ranks=world,
    )
