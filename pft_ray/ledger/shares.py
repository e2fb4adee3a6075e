"""Shares of a filter block: what one run may take of one purpose, in integer rho."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pft_ray.accounting.events import (
    Event,
    Repeat,
    count_leaves,
    event_from_dict,
    event_to_dict,
)
from pft_ray.accounting.filters import UNITS, rho_units
from pft_ray.errors import InputError
from pft_ray.ledger.budget import Envelope, Purpose

UNASSIGNED = "unassigned"
_PART = re.compile(r"[a-z0-9][a-z0-9._-]*")
_MAX_PATH = 200
_FIELDS = {"block", "purpose", "rho_units", "event"}


def check_purpose(path: Any) -> str:
    """Returns the path of a purpose, for example ``training/epoch-2``.

    Raises:
        InputError: It is none, or it is the name of what no purpose has.
    """
    if (
        not isinstance(path, str)
        or len(path) > _MAX_PATH
        or not all(_PART.fullmatch(part) for part in path.split("/"))
        or path.split("/")[0] == UNASSIGNED
    ):
        raise InputError(
            f"{path!r} is not the path of a purpose.",
            "Use small letters, digits and . _ - in parts divided by /, for example "
            f"training/epoch-2; {UNASSIGNED!r} is what no purpose has.",
        )
    return path


@dataclass(frozen=True)
class RhoShare:
    """What one run may take from one purpose of one filter block.

    Attributes:
        block: Name of the block that pays.
        purpose: Path of the purpose that pays; below ``evaluation`` looks are paid,
            below any other name steps.
        rho_units: Cost of all planned steps or looks, in units of 2**-40.
        event: The step or look and how often it happens: a ``Repeat``.
    """

    block: str
    purpose: str
    rho_units: int
    event: Event

    @classmethod
    def priced(cls, block: str, purpose: str, event: Event, order: int) -> RhoShare:
        """Returns the share of an event at the block's order, rounded up.

        Raises:
            InputError: The event is no repetition, or the purpose is no path.
            PlanError: The event is not private, or the order is not usable.
        """
        share = cls(block, check_purpose(purpose), rho_units(event, order), event)
        return cls.from_dict(share.to_dict())

    @property
    def role(self) -> Purpose:
        """Whether the share pays for steps (training) or looks (evaluation)."""
        is_look = self.purpose.split("/")[0] == "evaluation"
        return "evaluation" if is_look else "training"

    @property
    def num_events(self) -> int:
        """Steps or looks that are paid for."""
        return self.event.count if isinstance(self.event, Repeat) else 1

    @property
    def one_event(self) -> Event:
        """The event of one step or look."""
        return self.event.event if isinstance(self.event, Repeat) else self.event

    @property
    def units_each(self) -> int:
        """What one step or look costs, in units of 2**-40."""
        return self.rho_units // self.num_events

    @property
    def slack_units_each(self) -> int:
        """By how many units another machine may round the cost of one step or look.

        One for each plain event in it: each is rounded up by itself.
        """
        return sum(count for _, count in count_leaves(self.one_event))

    @property
    def rho(self) -> float:
        """The whole share as a Renyi divergence."""
        return self.rho_units / UNITS

    def to_dict(self) -> dict[str, Any]:
        """Returns the share as JSON."""
        return {
            "block": self.block,
            "purpose": self.purpose,
            "rho_units": self.rho_units,
            "event": event_to_dict(self.event),
        }

    @classmethod
    def from_dict(cls, data: Any) -> RhoShare:
        """Reads a share written by :meth:`to_dict`.

        Raises:
            InputError: A field is missing, extra, of a wrong type or out of range.
        """
        if not isinstance(data, dict) or set(data) != _FIELDS:
            raise InputError("A share with wrong fields.", "Verify the ledger.")
        if not isinstance(data["block"], str):
            raise InputError("A share without the name of a block.")
        units = data["rho_units"]
        if type(units) is not int or units < 1:
            raise InputError(
                f"A share with rho_units {units!r}.",
                "Give an integer of at least one unit.",
            )
        event = event_from_dict(data["event"])
        if not isinstance(event, Repeat) or units % event.count:
            raise InputError(
                f"A share of {units} units that is not so many equal steps or looks.",
                "Build it with RhoShare.priced from a repetition.",
            )
        return cls(data["block"], check_purpose(data["purpose"]), units, event)


Part = Envelope | RhoShare


def part_from_dict(data: Any) -> Part:
    """Reads a part of a reservation: an envelope, or a share of a filter block.

    Raises:
        InputError: It is neither.
    """
    if isinstance(data, dict) and "rho_units" in data:
        return RhoShare.from_dict(data)
    return Envelope.from_dict(data)
