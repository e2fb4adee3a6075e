"""Rules for runs on filter blocks: reserving, charging and settling shares.

``check_shares`` raises and changes nothing; the others change the state and cannot
fail after their entry was checked.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pft_ray.accounting.filters import UNITS, epsilon_of_units, rho_units
from pft_ray.errors import (
    BlockModeError,
    BudgetError,
    InputError,
    PlanError,
    UnknownPurposeError,
)
from pft_ray.ledger.budget import (
    Envelope,
    block_delta_units,
    delta_value,
    envelope_delta_units,
)
from pft_ray.ledger.filter_records import FilterBudget, Holding
from pft_ray.ledger.shares import RhoShare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.budget import Purpose
    from pft_ray.ledger.filter_records import Account
    from pft_ray.ledger.records import Block, Run
    from pft_ray.ledger.state import LedgerState


def check_modes(state: LedgerState, parts: Iterable[Envelope | RhoShare]) -> None:
    """A run is a plan run with envelopes, or a filter run with shares.

    Raises:
        BlockModeError: Both are mixed, or a part does not suit its block's mode.
        UnknownBlockError: A block does not exist.
    """
    kinds = set()
    for part in parts:
        block = state.block(part.block)
        mode = "filter" if isinstance(part, RhoShare) else "plan"
        kinds.add(mode)
        if block.mode != mode:
            asked = "a share of rho" if mode == "filter" else "an envelope"
            raise BlockModeError(
                f"Block {block.name!r} has mode {block.mode}; the run asks for "
                f"{asked}.",
                f"Set privacy.accounting: {block.mode}, or name a block of mode "
                f"{mode}.",
                {"block": block.name, "mode": block.mode},
            )
    if len(kinds) > 1:
        raise BlockModeError(
            "A reservation mixes envelopes and shares of rho.",
            "A run is accounted by its plan or by filters, on all of its blocks.",
        )


def check_shares(state: LedgerState, plan: Plan, shares: Sequence[RhoShare]) -> None:
    """Shares pay for the plan's own events; :func:`check_room` checks that they fit.

    Guarantee:
        For every block and every purpose of it, what is charged and what is held by
        runs sum to at most its rho, in exact integers, whatever was asked, charged,
        moved or given back, in whatever order. With all events of the block priced
        at the one order that was fixed before, everything that was ever done to a
        unit of the block is (epsilon, delta)-private with the block's numbers, also
        when later runs were chosen after seeing what earlier ones released (Feldman
        and Zrnic 2021, arXiv:2008.11193).

    Raises:
        UnknownPurposeError: A block has no such purpose.
        InputError: A share does not pay for the plan.
    """
    if plan.owners is not None:
        raise PlanError(
            "A plan with owners asks for shares of filter blocks.",
            "Owners have budgets of their own: use blocks of mode plan.",
        )
    pairs = [(share.block, share.purpose) for share in shares]
    if len(set(pairs)) != len(pairs):
        raise InputError("A reservation has two shares of one block and purpose.")
    _check_events(state, plan, shares)
    _check_counts(plan, shares)
    for share in shares:
        account_of(state.block(share.block), share.purpose)


def check_room(state: LedgerState, shares: Iterable[RhoShare]) -> None:
    """Checks that the purposes hold what is asked of them.

    Raises:
        BudgetError: A purpose has too little left.
        UnknownPurposeError: A block has no such purpose.
    """
    for share in shares:
        refuse_short(state.block(share.block), share.purpose, share.rho_units)


def _events(plan: Plan) -> dict[Purpose, tuple[object, int, float]]:
    """Returns by role: the event of one step or look, how many, and the delta."""
    events: dict[Purpose, tuple[object, int, float]] = {
        "training": (plan.step_event, plan.num_steps_max, plan.delta)
    }
    look = plan.evaluation
    if look is not None:
        events["evaluation"] = (look.look_event, look.num_looks_max, look.delta)
    return events


def _check_events(state: LedgerState, plan: Plan, shares: Iterable[RhoShare]) -> None:
    events = _events(plan)
    for share in shares:
        if share.role not in events:
            raise InputError("An evaluation share without planned looks.")
        event, _, delta = events[share.role]
        if share.one_event != event:
            raise InputError(
                f"The share {share.purpose!r} of block {share.block!r} pays for "
                "another event than the plan's.",
                "What is charged is what is executed: build it from the plan.",
            )
        block = state.block(share.block)
        cost = rho_units(share.one_event, budget_of(block).order)
        if share.units_each < cost - share.slack_units_each:
            raise InputError(
                f"The share {share.purpose!r} of block {share.block!r} holds "
                f"{share.units_each} units an event, which costs {cost} at order "
                f"{budget_of(block).order}.",
                "Price it at the block's order.",
                {"block": block.name, "order": budget_of(block).order},
            )
        if block.delta_units not in (
            block_delta_units(delta),
            envelope_delta_units(delta),
        ):
            raise InputError(
                f"The plan's {share.role} delta is {delta:g}, that of block "
                f"{block.name!r} is {delta_value(block.delta_units):g}.",
                "Runs on a filter block are stated at the block's delta: use it.",
                {"block": block.name},
            )


def _check_counts(plan: Plan, shares: Iterable[RhoShare]) -> None:
    """On each block the shares of a role pay for all steps or looks, none twice."""
    events = _events(plan)
    counts: Counter[tuple[Purpose, str]] = Counter()
    for share in shares:
        counts[share.role, share.block] += share.num_events
    roles = [role for role, _ in counts]
    if "training" not in roles:
        raise InputError("A reservation needs a share for training.")
    if roles.count("evaluation") > 1:
        raise InputError("A reservation has evaluation shares of two blocks.")
    for (role, block), count in counts.items():
        wanted = events[role][1]
        if count != wanted:
            raise InputError(
                f"The {role} shares of block {block!r} pay for {count} steps or looks; "
                f"the plan has {wanted}.",
                "Divide all of T_max, or of the planned looks, among the purposes.",
            )


def budget_of(block: Block) -> FilterBudget:
    """Returns the rho of a filter block.

    Raises:
        BlockModeError: The block is of mode plan.
    """
    if block.filter is None:
        raise BlockModeError(
            f"Block {block.name!r} has mode {block.mode}: its envelopes never move.",
            "Name a block of mode filter.",
            {"block": block.name, "mode": block.mode},
        )
    return block.filter


def account_of(block: Block, purpose: str) -> Account:
    """Returns a purpose's account.

    Raises:
        BlockModeError: The block is of mode plan.
        UnknownPurposeError: The block has no such purpose.
    """
    accounts = budget_of(block).accounts
    if purpose not in accounts:
        raise UnknownPurposeError(
            f"Block {block.name!r} has no purpose {purpose!r}.",
            f"It has {', '.join(sorted(accounts))}; `pft budget move` makes others.",
            {"block": block.name, "purpose": purpose},
        )
    return accounts[purpose]


def refuse_short(block: Block, purpose: str, asked: int) -> None:
    """Refuses what a purpose has not free.

    Raises:
        BudgetError: ``details`` says what was asked and what is left.
    """
    left = account_of(block, purpose).free_rho_units
    if asked <= left:
        return
    order, delta = budget_of(block).order, delta_value(block.delta_units)
    epsilons = [epsilon_of_units(n, delta, order) if n else 0.0 for n in (left, asked)]
    raise BudgetError(
        f"Purpose {purpose!r} of block {block.name!r} has rho {left / UNITS:.6g} left "
        f"(epsilon {epsilons[0]:.4g} at order {order}); {asked / UNITS:.6g} "
        f"(epsilon {epsilons[1]:.4g}) is asked for.",
        "Ask for less, or move rho from another purpose with `pft budget move`.",
        {
            "block": block.name,
            "purpose": purpose,
            "order": order,
            "remaining_rho_units": left,
            "asked_rho_units": asked,
            "remaining_epsilon": epsilons[0],
            "asked_epsilon": epsilons[1],
        },
    )


def hold_shares(state: LedgerState, shares: Iterable[RhoShare]) -> list[Holding]:
    """Takes shares out of what their purposes have free."""
    holdings = []
    for share in shares:
        account = account_of(state.blocks[share.block], share.purpose)
        account.reserved_rho_units += share.rho_units
        holdings.append(Holding(share))
    return holdings


def charge_shares(state: LedgerState, run: Run, role: Purpose, count: int) -> None:
    """Charges steps or looks to the run's shares, on each block in their order."""
    left = {
        holding.share.block: count
        for holding in run.holdings
        if holding.share.role == role
    }
    for holding in run.holdings:
        share = holding.share
        if share.role != role:
            continue
        number = min(left[share.block], holding.num_left)
        left[share.block] -= number
        holding.num_charged += number
        account = account_of(state.blocks[share.block], share.purpose)
        account.reserved_rho_units -= number * share.units_each
        account.spent_rho_units += number * share.units_each


def settle_shares(state: LedgerState, run: Run) -> None:
    """Returns to their purposes what the run's shares were not charged."""
    for holding in run.holdings:
        share = holding.share
        account = account_of(state.blocks[share.block], share.purpose)
        account.reserved_rho_units -= holding.held_rho_units
        holding.is_settled = True
