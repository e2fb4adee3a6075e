"""An open attempt: its key, its roster, and what was granted to whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pft_ray.cluster.step_keys import common_sample_key, step_keys
from pft_ray.errors import GrantRefusedError

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.training.step import StepKeys


@dataclass
class Attempt:
    """An open attempt; its key is in this process's memory and nowhere else.

    Attributes:
        number: As the ledger allocated it.
        key: Fresh 32 bytes.
        tokens: Incarnation token of each rank of the present roster.
        start: Steps that the parameters had when the attempt was opened.
        ended: No further step is granted.
        granted: Stop of each grant by its start, of the present roster alone.
        position: The ledger's position at the last charge.
        served: Last grant of each rank's incarnation.
        sample_keys: Of the last grant's steps: they are the same on all ranks.
        roster_start: Step before which the present roster took the attempt over.
    """

    number: int
    key: bytes = field(repr=False)
    tokens: tuple[bytes, ...]
    start: int
    ended: bool = False
    granted: dict[int, int] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    served: dict[tuple[int, bytes], tuple[int, int]] = field(default_factory=dict)
    sample_keys: dict[int, bytes] = field(default_factory=dict, repr=False)
    roster_start: int = -1

    def __post_init__(self) -> None:
        self.roster_start = max(self.roster_start, self.start)

    @property
    def charged(self) -> int:
        """One past the last charged step; the roster's start before any."""
        return max(self.granted.values(), default=self.roster_start)

    def is_repeated(self, tokens: list[bytes], start: int) -> bool:
        """The roster asks again, as a reply was lost; no key was handed out yet."""
        asked = (tuple(tokens), start)
        return (
            not self.ended
            and not self.granted
            and asked == (self.tokens, self.roster_start)
        )

    def can_pass(self, tokens: list[bytes], start: int) -> bool:
        """Says whether a new roster can go on where this one stopped.

        Every incarnation is a new one, and its parameters have every charged step.
        """
        return (
            not self.ended
            and start == self.charged
            and not set(tokens) & set(self.tokens)
        )

    def pass_to(self, tokens: list[bytes], start: int) -> None:
        """Gives the attempt to a new roster, which starts at ``start``.

        Guarantee:
            The new roster gets keys of steps that no earlier one was granted, cut
            for itself: what was granted is forgotten, and it may ask for ``start``
            and later steps alone.
        """
        self.tokens, self.roster_start = tuple(tokens), start
        self.granted, self.served, self.sample_keys = {}, {}, {}

    def check_incarnation(self, rank: int, token: bytes) -> None:
        """Refuses an incarnation that the attempt was not opened for.

        Raises:
            GrantRefusedError: Rank and token do not belong together here.
        """
        if not 0 <= rank < len(self.tokens) or self.tokens[rank] != token:
            raise GrantRefusedError(
                f"Rank {rank} is not the incarnation that attempt "
                f"{self.number} was opened for.",
                "Open a new attempt.",
            )

    def check_order(self, rank: int, start: int) -> None:
        """Refuses steps before those that the present roster took over.

        Raises:
            GrantRefusedError: They belong to an earlier roster.
        """
        if start < self.roster_start:
            raise GrantRefusedError(
                f"Rank {rank} asks for step {start}, and its roster starts at step "
                f"{self.roster_start}."
            )

    def serve(self, rank: int, token: bytes, start: int) -> int:
        """Notes that a rank gets the grant at ``start``; returns the grant's stop.

        Raises:
            GrantRefusedError: It had a later one already.
        """
        stop = self.granted[start]
        earlier = self.served.setdefault((rank, token), (start, stop))
        if earlier[0] > start:
            raise GrantRefusedError(
                f"Rank {rank} asks for step {start} after step {earlier[0]}."
            )
        self.served[(rank, token)] = (start, stop)
        return stop

    def keys(
        self, plan: Plan, run_id: str, rank: int, steps: range
    ) -> tuple[StepKeys, ...]:
        """Returns the keys of one rank for granted steps."""
        world, keys = len(self.tokens), []
        for step in steps:
            position = (run_id, self.number, step)
            sample = self.sample_keys.get(step)
            if sample is None:
                sample = common_sample_key(plan, self.key, position)
                self.sample_keys[step] = sample
            keys.append(step_keys(plan, self.key, position, rank, world, sample))
        return tuple(keys)
