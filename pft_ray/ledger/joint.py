"""Runs that are declared together before any of them starts: ``ledger.joint``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pft_ray.accounting.events import Composed
from pft_ray.crypto import new_token
from pft_ray.errors import InputError
from pft_ray.ledger.budget import Envelope, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.accounting.events import Event
    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.chain import Chain
    from pft_ray.ledger.entries import Body, Position


@dataclass(frozen=True)
class JointRun:
    """One of the runs; the public name is the run id when it is empty."""

    run_id: str
    plan: Plan
    name: str = ""


def joint_event(plans: Sequence[Plan], purpose: Purpose) -> Event:
    """Returns the events of all plans for a purpose, one after the other.

    Raises:
        InputError: No plan has events for it.
    """
    if purpose == "training":
        return Composed(tuple(plan.event for plan in plans))
    looks = [plan.evaluation for plan in plans if plan.evaluation is not None]
    if not looks:
        raise InputError("None of the plans has a look.", "Leave evaluation out.")
    return Composed(tuple(look.event for look in looks))


def joint_envelope(
    plans: Sequence[Plan], block: str, purpose: Purpose, delta: float
) -> Envelope:
    """Returns the envelope that pays for all plans together, priced by PLD.

    Args:
        plans: Of the runs, in the order of the reservation.
        block: The block that pays; of mode plan.
        purpose: ``training`` or ``evaluation``.
        delta: At this delta, at least that of each plan.
    """
    from pft_ray.accounting.accountants import epsilon

    event = joint_event(plans, purpose)
    price = epsilon(event, delta, accountant="pld")
    return Envelope.priced(block, purpose, price, delta, event)


class JointReservations:
    """Reserves for several runs at once, priced together."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def reserve(
        self, runs: Sequence[JointRun], envelopes: Sequence[Envelope]
    ) -> Position:
        """Reserves the envelopes of all runs in one entry, or nothing.

        The reservation is given back only while none of the runs was charged, for all
        of them together; the first charge of any uses the envelopes whole.

        Args:
            runs: At least two, with ids never used before.
            envelopes: From :func:`joint_envelope`, one a block and purpose.

        Returns:
            Sequence and root of the reservation's entry.

        Raises:
            BudgetError: A block has not enough left; nothing was written.
            InputError: A run exists, or an envelope does not pay for all runs.
            BlockModeError: A block is of mode filter.
            UnknownBlockError: A block does not exist.
        """
        body: Body = {
            "runs": [
                {
                    "run_id": run.run_id,
                    "name": run.name or run.run_id,
                    "plan": run.plan.to_dict(),
                    "plan_digest": run.plan.digest,
                }
                for run in runs
            ],
            "envelopes": [envelope.to_dict() for envelope in envelopes],
            "blind": new_token().hex(),
        }
        entry = self._chain.append("joint_reserve", lambda _: body)
        assert entry is not None  # build never gives None
        return entry.position
