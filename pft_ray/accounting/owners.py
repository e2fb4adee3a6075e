"""Owners with budgets of their own: individualised DP-SGD as a frozen public value.

Boenisch, Mühl, Dziedzic, Rinberg and Papernot 2023 (arXiv:2303.17046). All owners share
one model and one noise. An owner whose units may lose less is drawn more rarely
(``sample``) or clipped harder (``scale``), so that each of its units has the epsilon of
that owner. What is hidden is one unit of an owner, never its whole shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pft_ray.accounting.events import (
    PoissonGaussian,
    check_count,
    check_positive,
    check_rate,
    check_word,
    store,
)
from pft_ray.errors import PlanError

OwnerMethod = Literal["sample", "scale"]


@dataclass(frozen=True)
class Owner:
    """One owner. Everything is declared, public and independent of content.

    Attributes:
        name: Name, for plans and reports.
        size: Declared number n_i of training units.
        epsilon: What each of its units may lose, at the plan's delta.
        sample_rate: q_i, the probability of each of its units to be in a step.
        clip_scale: C_i over the clip norm C of the phase.
    """

    name: str
    size: int
    epsilon: float
    sample_rate: float
    clip_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise PlanError(f"An owner's name is {self.name!r}.", "Give it a name.")
        size = check_count(self.size, f"size of owner {self.name!r}")
        store(self, size=size, sample_rate=check_rate(self.sample_rate))
        for name in ("epsilon", "clip_scale"):
            value = check_positive(getattr(self, name), f"{name} of {self.name!r}")
            store(self, **{name: value})


@dataclass(frozen=True)
class Owners:
    """All owners of a plan.

    Attributes:
        method: ``sample``: rates differ and all clip norms are C. ``scale``: clip
            norms differ and all rates are equal.
        members: The owners, in the order in which they are numbered.
    """

    method: OwnerMethod
    members: tuple[Owner, ...]

    def __post_init__(self) -> None:
        check_word(self.method, OwnerMethod, "method")
        object.__setattr__(self, "members", tuple(self.members))
        names = [owner.name for owner in self.members]
        if len(names) < 2 or len(set(names)) != len(names):
            raise PlanError(
                f"The owners are {names}.", "Give two or more owners of distinct names."
            )
        key = "clip_scale" if self.method == "sample" else "sample_rate"
        equal = {getattr(owner, key) for owner in self.members}
        if len(equal) > 1 or (self.method == "sample" and equal != {1.0}):
            raise PlanError(
                f"Owners by {self.method} with {key} {sorted(equal)}.",
                "By sample the rates differ alone, by scale the clip norms alone.",
            )

    def check_fits(self, size: int, *, by_records: bool, moving_clip: bool) -> None:
        """Refuses a plan of another size, or one whose bounds are not an owner's.

        Args:
            size: The plan's declared n.
            by_records: Whether a user's records are drawn one by one.
            moving_clip: Whether the clip norm of a phase moves.
        """
        if self.size != size:
            raise PlanError(
                f"The owners declare {self.size} units, the plan {size}.",
                "Declare as many units in all as the owners have together.",
            )
        if by_records or (moving_clip and self.method == "scale"):
            raise PlanError(
                "Owners with els, or by scale with a clip norm that moves.",
                "Hide users by uls; with owners by scale keep the clip norms fixed.",
            )

    @property
    def size(self) -> int:
        """Declared units of all owners."""
        return sum(owner.size for owner in self.members)

    @property
    def expected_batch_size(self) -> float:
        """The public normaliser of every step: the sum of q_i n_i."""
        return math.fsum(owner.sample_rate * owner.size for owner in self.members)

    def noise_multiplier(self, number: int, sigma: float) -> float:
        """Returns sigma C / C_i, rounded down: the noise that owner i's units see."""
        value = sigma / self.members[number].clip_scale
        for _ in range(4):  # C_i, the quotient and the product in C_i are rounded
            value = math.nextafter(value, 0.0)
        return value if self.method == "scale" else sigma

    def step_event(
        self, number: int, sigma: float, noise_share: Fraction = Fraction(1)
    ) -> PoissonGaussian:
        """Returns what one step does to a unit of one owner.

        Args:
            number: The owner.
            sigma: Noise deviation of the sum over C.
            noise_share: Part of the noise variance that the observer does not know.

        Guarantee:
            A unit of owner i is in with probability at most q_i and moves the sum by
            at most C_i, whose noise has deviation sigma C. So the step is this event,
            for a unit of owner i, added or removed.
        """
        noise = self.noise_multiplier(number, sigma)
        if noise_share < 1:
            noise *= math.sqrt(noise_share)
            for _ in range(4):
                noise = math.nextafter(noise, 0.0)
        return PoissonGaussian(self.members[number].sample_rate, noise)

    def worst(self) -> int:
        """Returns the number of an owner whose units lose most, at every delta.

        By sample it is the one of the highest rate and by scale the one of the largest
        clip norm: with all else equal, either event dominates those of the others.
        """

        def loss(number: int) -> tuple[float, float]:
            owner = self.members[number]
            return owner.sample_rate, owner.clip_scale

        return max(range(len(self.members)), key=loss)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Owners:
        """Reads what ``dataclasses.asdict`` gave."""
        fields = dict(data)
        fields["members"] = tuple(Owner(**owner) for owner in fields["members"])
        return cls(**fields)


def owners_of_rank(rank: int, num_workers: int, num_owners: int) -> tuple[int, ...]:
    """Returns the owners whose units lie on a rank.

    With at least as many workers as owners every worker serves one owner; with fewer,
    every owner lies on one worker, and owners share workers.
    """
    if num_workers >= num_owners:
        return (rank % num_owners,)
    return tuple(range(rank, num_owners, num_workers))


def noise_against_colluders(
    victim: int,
    *,
    num_owners: int,
    num_workers: int,
    num_shares: int,
    num_colluding: int,
    num_missing: int = 0,
) -> Fraction:
    """Returns the part of the noise variance that colluding owners do not know.

    An owner knows the noise shares of the workers that it runs, and can subtract them.
    Share i of V lies on worker i modulo the number of workers and carries 1/V of the
    variance. The worst ``num_colluding`` owners are taken; none is the victim.

    Args:
        victim: The owner whose units are to be hidden.
        num_owners: All owners.
        num_workers: Workers, of which each owner runs its own.
        num_shares: V.
        num_colluding: Owners that put together what they know.
        num_missing: Shares that a roster may lack, t; the others' are taken to be
            absent, and each carries 1/(V - t).

    Returns:
        The sum of the shares of all others over V - t; 0 when a colluding owner may run
        the worker that holds the victim's own units.
    """

    def ranks(owner: int) -> frozenset[int]:
        return frozenset(
            rank
            for rank in range(num_workers)
            if owner in owners_of_rank(rank, num_workers, num_owners)
        )

    groups = {ranks(owner) for owner in range(num_owners) if owner != victim}
    if num_colluding > 0 and ranks(victim) in groups:
        return Fraction(0)
    known = sorted(
        (sum(i % num_workers in group for i in range(num_shares)) for group in groups),
        reverse=True,
    )
    needed = num_shares - num_missing
    return 1 - min(Fraction(1), Fraction(sum(known[:num_colluding]), needed))
