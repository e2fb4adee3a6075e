"""Views of filter blocks for display and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.filters import UNITS, epsilon_of_units
from pft_ray.ledger.budget import delta_value, epsilon_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pft_ray.ledger.filter_records import FilterBudget
    from pft_ray.ledger.records import Block
    from pft_ray.ledger.shares import RhoShare


@dataclass(frozen=True)
class PurposeStatus:
    """One purpose of a filter block, in units of 2**-40."""

    name: str
    rho_units: int
    reserved_rho_units: int
    spent_rho_units: int
    remaining_rho_units: int


@dataclass(frozen=True)
class FilterStatus:
    """The rho of a filter block: for the operator, not for release.

    ``spent_fraction`` is spent rho over the block's, ``reserved_fraction`` the part
    that runs hold and were not charged.
    """

    order: int
    rho: float
    rho_units: int
    reserved_rho_units: int
    spent_rho_units: int
    remaining_rho_units: int
    spent_fraction: float
    reserved_fraction: float
    purposes: tuple[PurposeStatus, ...]


def filter_status(budget: FilterBudget) -> FilterStatus:
    """Returns the status of a filter block's rho; purposes in order of their names."""
    whole = budget.rho_units
    return FilterStatus(
        order=budget.order,
        rho=whole / UNITS,
        rho_units=whole,
        reserved_rho_units=budget.reserved_rho_units,
        spent_rho_units=budget.spent_rho_units,
        remaining_rho_units=budget.free_rho_units,
        spent_fraction=budget.spent_rho_units / whole,
        reserved_fraction=budget.reserved_rho_units / whole,
        purposes=tuple(
            PurposeStatus(
                name,
                account.rho_units,
                account.reserved_rho_units,
                account.spent_rho_units,
                account.free_rho_units,
            )
            for name, account in sorted(budget.accounts.items())
        ),
    )


def budget_figures(block: Block) -> dict[str, Any]:
    """Returns the figures of a block's status that its mode decides.

    For a filter block epsilons are units converted at its order: what was spent, what
    was spent or is held, and what one more run could take at most. They do not add up,
    units do. Its delta is used once and for all.
    """
    budget = block.filter
    if budget is None:
        return {
            "reserved_epsilon": epsilon_value(block.reserved_epsilon_units),
            "used_epsilon": epsilon_value(block.used_epsilon_units),
            "remaining_epsilon": epsilon_value(block.remaining_epsilon_units),
            "reserved_delta": delta_value(block.reserved_delta_units),
            "used_delta": delta_value(block.used_delta_units),
            "remaining_delta": delta_value(block.remaining_delta_units),
            "filter": None,
        }
    delta = delta_value(block.delta_units)

    def worth(units: int) -> float:
        epsilon = epsilon_of_units(units, delta, budget.order) if units else 0.0
        return min(epsilon, epsilon_value(block.epsilon_units))

    spent = budget.spent_rho_units
    return {
        "reserved_epsilon": worth(spent + budget.reserved_rho_units),
        "used_epsilon": worth(spent),
        "remaining_epsilon": worth(budget.free_rho_units),
        "reserved_delta": 0.0,
        "used_delta": 0.0,
        "remaining_delta": delta,
        "filter": filter_status(budget),
    }


def share_epsilons(
    shares: Iterable[RhoShare], orders: Mapping[str, tuple[int, float]]
) -> dict[str, float]:
    """Returns what a run's whole reservation costs each of its blocks.

    Guarantee:
        What a run does to a block is at most its whole reservation there; converted
        at the block's order and delta it is the run's (epsilon, delta), whatever it
        was charged in the end. The sum that was spent depends on private outputs and
        is never stated.

    Args:
        shares: All shares of the run.
        orders: (order, delta) by block.
    """
    units: dict[str, int] = {}
    for share in shares:
        units[share.block] = units.get(share.block, 0) + share.rho_units
    return {
        block: epsilon_of_units(total, orders[block][1], orders[block][0])
        for block, total in units.items()
    }
