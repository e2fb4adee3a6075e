"""What the ledger knows of filter blocks: their rho, its purposes, what runs hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pft_ray.ledger.shares import RhoShare


@dataclass
class Account:
    """One purpose's part of a filter block, in units of 2**-40.

    Attributes:
        rho_units: What the purpose has now.
        reserved_rho_units: Held by runs and not charged.
        spent_rho_units: Charged, for ever.
    """

    rho_units: int
    reserved_rho_units: int = 0
    spent_rho_units: int = 0

    @property
    def free_rho_units(self) -> int:
        """What a run may reserve, or a move may take."""
        return self.rho_units - self.reserved_rho_units - self.spent_rho_units


@dataclass
class FilterBudget:
    """The rho of a filter block.

    Attributes:
        order: The one Renyi order at which everything is counted.
        rho_units: What (epsilon, delta) buys at that order.
        first_purposes: Purposes as the block was created with.
        accounts: Purposes as they are now; together they have ``rho_units``.
    """

    order: int
    rho_units: int
    first_purposes: dict[str, int]
    accounts: dict[str, Account]

    @property
    def reserved_rho_units(self) -> int:
        """Held by runs and not charged, over all purposes."""
        return sum(account.reserved_rho_units for account in self.accounts.values())

    @property
    def spent_rho_units(self) -> int:
        """Charged, over all purposes."""
        return sum(account.spent_rho_units for account in self.accounts.values())

    @property
    def free_rho_units(self) -> int:
        """Neither charged nor held by a run, over all purposes."""
        return sum(account.free_rho_units for account in self.accounts.values())


@dataclass
class Holding:
    """A run's share and how many of its steps or looks were charged."""

    share: RhoShare
    num_charged: int = 0
    is_settled: bool = False

    @property
    def spent_rho_units(self) -> int:
        """What was charged to it."""
        return self.num_charged * self.share.units_each

    @property
    def held_rho_units(self) -> int:
        """What it still keeps from others."""
        return 0 if self.is_settled else self.share.rho_units - self.spent_rho_units

    @property
    def num_left(self) -> int:
        """Steps or looks that it can still pay for."""
        return 0 if self.is_settled else self.share.num_events - self.num_charged
