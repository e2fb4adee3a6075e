"""Writes to filter blocks: ``ledger.filters`` creates them and moves their rho."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.events import check_count
from pft_ray.accounting.filters import UNITS, budget_units
from pft_ray.crypto import new_token
from pft_ray.errors import BudgetError, InputError
from pft_ray.ledger import bodies
from pft_ray.ledger.budget import (
    block_delta_units,
    block_epsilon_units,
    delta_value,
    epsilon_value,
)
from pft_ray.ledger.entries import natural
from pft_ray.ledger.shares import check_purpose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.ledger.chain import Chain
    from pft_ray.ledger.entries import Body, Position
    from pft_ray.ledger.state import LedgerState


def exact_amount(value: Any, name: str) -> Fraction:
    """Returns a positive amount as written: 0.1 is one tenth.

    Raises:
        InputError: NaN, infinite, zero, negative, or not a number.
    """
    exact = Fraction(0)
    if isinstance(value, float) and math.isfinite(value):
        exact = Fraction(repr(value))
    elif type(value) in (int, Fraction):
        exact = Fraction(value)
    if exact <= 0:
        raise InputError(
            f"{name} is {value!r}.", f"Give {name} as a finite number above zero."
        )
    return exact


def units_of_rho(rho: float) -> int:
    """Returns an amount of rho in units of 2**-40, rounded down.

    Raises:
        InputError: NaN, infinite, zero, negative, or below one unit.
    """
    units = math.floor(exact_amount(rho, "rho") * UNITS)
    if units < 1:
        raise InputError(f"rho is {rho!r}, below one unit.", "Give at least 1e-12.")
    return units


@dataclass(frozen=True)
class FilterSpec:
    """The definition of a filter block, as :meth:`FilterBlocks.create` takes it.

    Attributes:
        name: The block's name.
        dataset: The registration it is cut from.
        predicate: Public rule that says which units are in it.
        unit: ``record`` or ``user``.
        epsilon: Budget, rounded down to 1e-9.
        delta: Budget, rounded down to 1e-18.
        order: The one Renyi order, an integer from 2 to 1024, fixed for ever; best
            is :func:`~pft_ray.accounting.filters.best_order` of what will be done.
        purposes: Parts of the rho by path, each in (0, 1], together at most 1. Every
            path has an account of its own: a run that names ``training`` takes nothing
            from ``training/epoch-2``.
    """

    name: str
    dataset: str
    predicate: Mapping[str, Any]
    unit: str
    epsilon: float
    delta: float
    order: int
    purposes: Mapping[str, float | Fraction] = field(default_factory=dict)

    def body(self, known_units: int | None = None) -> Body:
        """Returns the ledger's entry; parts of rho are rounded down.

        Raises:
            InputError: A number or path is not usable, or the parts exceed 1.
            BudgetError: The order buys nothing at so small an epsilon.
        """
        epsilon = block_epsilon_units(self.epsilon)
        delta = block_delta_units(self.delta)
        order = check_count(self.order, "order")
        units = known_units or 0
        if order > 1:
            worth = budget_units(epsilon_value(epsilon), delta_value(delta), order)
            # Another machine may have rounded a known block's budget otherwise.
            units = units if abs(units - worth) <= 1 else worth
            self._require_worth(worth)
        return {
            "name": self.name,
            "dataset": self.dataset,
            "predicate": bodies.plain(dict(self.predicate)),
            "unit": self.unit,
            "epsilon_units": epsilon,
            "delta_units": delta,
            "order": order,
            "rho_units": units,
            "purposes": self._purposes(units),
        }

    def _require_worth(self, units: int) -> None:
        if units < 1:
            raise BudgetError(
                f"Epsilon {self.epsilon:g} at delta {self.delta:g} buys nothing at "
                f"order {self.order}.",
                "Give a larger order, more epsilon or more delta.",
                {"block": self.name, "order": self.order},
            )

    def _purposes(self, units: int) -> dict[str, int]:
        parts = {
            check_purpose(path): exact_amount(part, f"The part of purpose {path!r}")
            for path, part in self.purposes.items()
        }
        if sum(parts.values()) > 1:
            raise InputError(
                f"The purposes of block {self.name!r} come to "
                f"{float(sum(parts.values())):g} of its budget.",
                "Give parts that sum to at most 1.",
            )
        found = {path: int(part * units) for path, part in parts.items()}
        for path, number in found.items():
            if units and not number:
                raise InputError(
                    f"The part of purpose {path!r} is below one unit of rho.",
                    "Give it more, or leave it out.",
                )
        return found


class FilterBlocks:
    """Creates filter blocks and moves rho between their purposes."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def create(self, spec: FilterSpec) -> bool:
        """Creates a block of mode ``filter`` with a budget of its own.

        Returns:
            True when it is new, False when the same definition exists.

        Raises:
            InputError: The name has another definition, or a number is not usable.
            BudgetError: The order buys nothing at so small an epsilon.
            UnknownBlockError: The data set is not registered.
        """
        first = spec.body()

        def build(state: LedgerState) -> Body | None:
            known = state.blocks.get(spec.name)
            if known is None:
                return first
            budget = known.filter
            if budget is not None:
                body = spec.body(known_units=budget.rho_units)
                found = {
                    name: getattr(known, name, None)
                    for name in body
                    if name not in ("order", "rho_units", "purposes")
                } | {
                    "order": budget.order,
                    "rho_units": budget.rho_units,
                    "purposes": budget.first_purposes,
                }
                if found == body:
                    return None
            raise InputError(
                f"Block {spec.name!r} exists with another definition.",
                "Blocks never change: take another name.",
                {"block": spec.name},
            )

        return self._chain.append("filter_block", build) is not None

    def move(self, block: str, source: str, target: str, rho_units: int) -> Position:
        """Moves free rho from one purpose to another, which may be new.

        Args:
            block: A block of mode filter.
            source: The purpose that gives, or ``unassigned``.
            target: The purpose that gets, or ``unassigned``.
            rho_units: The amount in units of 2**-40, at least 1.

        Raises:
            BudgetError: The source has not so much free; nothing was moved.
            BlockModeError: The block is of mode plan.
            UnknownPurposeError: The block has no such source.
            UnknownBlockError: The block does not exist.
        """
        body: Body = {
            "block": block,
            "source": source,
            "target": target,
            "rho_units": natural(rho_units, "rho_units"),
            # Tells this move from an equal one when its commit was broken off.
            "blind": new_token().hex(),
        }
        entry = self._chain.append("move", lambda _: body)
        assert entry is not None  # build never gives None
        return entry.position
