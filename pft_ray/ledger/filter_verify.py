"""Verification of filter blocks: every price and every sum computed anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pft_ray.accounting.filters import budget_units, epsilon_of_units, rho_units
from pft_ray.errors import VerificationError
from pft_ray.ledger.budget import delta_value, epsilon_value
from pft_ray.ledger.filter_status import share_epsilons
from pft_ray.ledger.share_rules import budget_of

if TYPE_CHECKING:
    from pft_ray.ledger.records import Block, Run
    from pft_ray.ledger.state import LedgerState

# Another machine's floating point may round a budget to the unit beside.
_SLACK_UNITS = 1


class ShareCheck(NamedTuple):
    """A share and the epsilon that its events give when computed anew."""

    block: str
    purpose: str
    epsilon: float
    held: float
    delta: float


def check_shares_anew(state: LedgerState, run: Run) -> list[ShareCheck]:
    """Prices the events of a run's shares anew.

    Raises:
        VerificationError: A share holds less than its events cost.
    """
    checks = []
    for share in run.shares:
        block = state.blocks[share.block]
        order, delta = budget_of(block).order, delta_value(block.delta_units)
        cost = rho_units(share.event, order)
        if share.rho_units < cost - share.slack_units_each * share.num_events:
            raise VerificationError(
                f"Ledger row {run.reservation.sequence}: the events of run "
                f"{run.run_id!r} cost {cost} units at order {order}, its share of "
                f"{share.purpose!r} holds {share.rho_units}.",
                "Its guarantee is the larger number.",
                {"row": run.reservation.sequence, "run_id": run.run_id},
            )
        checks.append(
            ShareCheck(
                share.block,
                share.purpose,
                epsilon_of_units(cost, delta, order),
                epsilon_of_units(share.rho_units, delta, order),
                delta,
            )
        )
    return checks


def reported_epsilons(state: LedgerState, run: Run) -> dict[str, float]:
    """Returns what the report of a filter run has to state, by block."""
    orders = {
        name: (
            budget_of(state.blocks[name]).order,
            delta_value(state.blocks[name].delta_units),
        )
        for name in run.blocks
    }
    return share_epsilons(run.shares, orders)


def check_filter_blocks(state: LedgerState) -> None:
    """Adds up what every run took of every filter block, from the runs alone.

    Raises:
        VerificationError: A sum is another than the block's accounts say, or more
            than (epsilon, delta) buys.
    """
    for block in state.blocks.values():
        if block.filter is not None:
            _check_filter_block(state, block)


def _check_filter_block(state: LedgerState, block: Block) -> None:
    budget = budget_of(block)
    worth = budget_units(
        epsilon_value(block.epsilon_units),
        delta_value(block.delta_units),
        budget.order,
    )
    spent: dict[str, int] = dict.fromkeys(budget.accounts, 0)
    held: dict[str, int] = dict.fromkeys(budget.accounts, 0)
    for run in state.runs.values():
        counts = {"training": run.num_steps_charged, "evaluation": len(run.looks)}
        for holding in run.holdings:
            share = holding.share
            if share.block != block.name:
                continue
            number = min(counts[share.role], share.num_events)
            counts[share.role] -= number
            cost = number * share.units_each
            spent[share.purpose] += cost
            if not holding.is_settled:
                held[share.purpose] += share.rho_units - cost
    wrong = budget.rho_units > worth + _SLACK_UNITS
    wrong |= sum(a.rho_units for a in budget.accounts.values()) != budget.rho_units
    for name, account in budget.accounts.items():
        wrong |= (account.spent_rho_units, account.reserved_rho_units) != (
            spent[name],
            held[name],
        )
        wrong |= spent[name] + held[name] > account.rho_units
    if wrong:
        raise VerificationError(
            f"The accounts of filter block {block.name!r} are not what its runs took.",
            "Restore the ledger from a copy that verifies.",
            {"block": block.name},
        )
