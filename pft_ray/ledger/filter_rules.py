"""Rules for filter blocks themselves: their creation, and moves between purposes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.filters import budget_units
from pft_ray.accounting.renyi import ORDERS
from pft_ray.errors import BudgetError, InputError
from pft_ray.ledger.block_rules import check_definition, check_hex
from pft_ray.ledger.budget import delta_value, epsilon_value
from pft_ray.ledger.filter_records import Account, FilterBudget
from pft_ray.ledger.records import Block
from pft_ray.ledger.share_rules import account_of, budget_of, refuse_short
from pft_ray.ledger.shares import UNASSIGNED, check_purpose

if TYPE_CHECKING:
    from pft_ray.ledger.entries import Body, Entry
    from pft_ray.ledger.state import LedgerState

# Another machine's floating point may round a budget to the unit beside.
_SLACK_UNITS = 1


def check_filter_block(state: LedgerState, body: Body) -> None:
    """A filter block's rho is what (epsilon, delta) buys at its order, no more.

    Guarantee:
        Order and rho are fixed here and never again. ``rho_units`` at ``order``
        convert to at most ``epsilon`` at ``delta``; purposes divide it and sum to
        at most it.
    """
    check_definition(state, body)
    name, order = body["name"], body["order"]
    if not ORDERS[0] <= order <= ORDERS[-1]:
        raise InputError(
            f"Block {name!r} asks for order {order}.",
            f"Give an order from {ORDERS[0]} to {ORDERS[-1]}.",
        )
    epsilon, delta = (
        epsilon_value(body["epsilon_units"]),
        delta_value(body["delta_units"]),
    )
    worth = budget_units(epsilon, delta, order)
    if body["rho_units"] < 1 or abs(body["rho_units"] - worth) > _SLACK_UNITS:
        raise BudgetError(
            f"Block {name!r} says {body['rho_units']} units of rho; epsilon "
            f"{epsilon:g} at delta {delta:g} buys {worth} at order {order}.",
            "An order that small cannot serve so small an epsilon: give a larger one."
            if worth < 1
            else "Build it with ledger.filters.create.",
            {"block": name, "order": order},
        )
    for purpose, units in body["purposes"].items():
        check_purpose(purpose)
        if type(units) is not int or units < 1:
            raise InputError(
                f"Purpose {purpose!r} of block {name!r} has {units!r} units.",
                "Give each purpose a part above zero.",
            )
    total = sum(body["purposes"].values())
    if total > body["rho_units"]:
        raise BudgetError(
            f"The purposes of block {name!r} hold {total} units of its "
            f"{body['rho_units']}.",
            "Give parts that sum to at most 1.",
            {"block": name},
        )


def advance_filter_block(state: LedgerState, entry: Entry) -> None:
    """Adds the block; what no purpose has stays unassigned."""
    fields = dict(entry.body)
    purposes = fields.pop("purposes")
    order, units = fields.pop("order"), fields.pop("rho_units")
    accounts = {purpose: Account(part) for purpose, part in purposes.items()}
    accounts[UNASSIGNED] = Account(units - sum(purposes.values()))
    budget = FilterBudget(order, units, dict(purposes), accounts)
    state.blocks[fields["name"]] = Block(mode="filter", filter=budget, **fields)


def check_move(state: LedgerState, body: Body) -> None:
    """Free rho moves from a purpose that has it to another, new or old."""
    check_hex(body["blind"], "blind", 32)
    block = state.block(body["block"])
    budget_of(block)
    source, target = body["source"], body["target"]
    for path in (source, target):
        if path != UNASSIGNED:
            check_purpose(path)
    if source == target:
        raise InputError(f"A move from {source!r} to itself.", "Name two purposes.")
    if body["rho_units"] < 1:
        raise InputError(
            f"A move of {body['rho_units']} units.", "Move an amount above zero."
        )
    account_of(block, source)
    refuse_short(block, source, body["rho_units"])


def advance_move(state: LedgerState, entry: Entry) -> None:
    """Moves the rho."""
    body = entry.body
    accounts = budget_of(state.blocks[body["block"]]).accounts
    accounts[body["source"]].rho_units -= body["rho_units"]
    target = accounts.setdefault(body["target"], Account(0))
    target.rho_units += body["rho_units"]
