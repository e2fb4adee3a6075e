"""What a plan costs each block that it is charged to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.accountants import epsilon as epsilon_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pft_ray.accounting.events import Event
    from pft_ray.accounting.plan import Plan
    from pft_ray.assurance.report import BlockLine

TRAINING = "training"
EVALUATION = "evaluation"

# Which block a price is for: its role, and the owner whose account it is.
BlockKey = tuple[str, str | None]


def block_key(line: BlockLine) -> BlockKey:
    """Returns what tells the price of a block."""
    return line.role, line.owner


def block_prices(plan: Plan) -> dict[BlockKey, tuple[float, float]]:
    """Returns what the plan costs each block: (PLD epsilon, delta).

    With owners there is one training block for each, at what its units lose.
    """
    events: dict[str | None, Event] = {None: plan.event}
    if plan.owners is not None:
        members = plan.owners.members
        events = {o.name: plan.owner_event(number) for number, o in enumerate(members)}
    prices: dict[BlockKey, tuple[float, float]] = {
        (TRAINING, owner): (epsilon_of(event, plan.delta), plan.delta)
        for owner, event in events.items()
    }
    looks = plan.evaluation
    if looks is not None:
        price = epsilon_of(looks.event, looks.delta), looks.delta
        prices[EVALUATION, None] = price
    return prices


def owner_accounts(lines: Iterable[BlockLine]) -> dict[str, str]:
    """Returns the block of each owner."""
    return {line.owner: line.name for line in lines if line.owner is not None}


def words_of(keys: Iterable[BlockKey]) -> list[str]:
    """Returns the blocks in words, sorted."""
    return sorted(
        role if owner is None else f"{role} of {owner}" for role, owner in keys
    )
