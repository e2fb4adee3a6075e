"""Rules for runs that are declared together: one price for all of their events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.errors import InputError
from pft_ray.ledger.block_rules import check_hex
from pft_ray.ledger.budget import Envelope, envelope_delta_units
from pft_ray.ledger.joint import joint_event
from pft_ray.ledger.reserve_rules import (
    add_run,
    check_budgets,
    check_new_run,
    check_purposes,
    check_unit,
    count_arrival,
    take_parts,
)
from pft_ray.ledger.share_rules import check_modes
from pft_ray.ledger.turns import check_arrival

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.entries import Body, Entry
    from pft_ray.ledger.state import LedgerState

_RUN_FIELDS = {"run_id": str, "name": str, "plan": dict, "plan_digest": str}


def check_joint_reserve(state: LedgerState, body: Body) -> None:
    """Runs declared together reserve envelopes for all of their events, or none.

    Guarantee:
        All events of the runs are fixed in one entry before any of them reads data,
        so PLD of their composition bounds all that the runs release together, in
        whatever order they run and whatever a later one reads of an earlier one
        (composition holds for mechanisms whose inputs are chosen adaptively, as long
        as their parameters are not). Block by block the envelope is used whole at the
        first charge of any of them.

    Raises:
        BudgetError: A block has not enough left.
        MustWaitError: It would overtake a run that waits.
        InputError: A run exists, or an envelope does not pay for all runs.
    """
    check_hex(body["blind"], "blind", 32)
    runs = body["runs"]
    if len(runs) < 2:
        raise InputError(
            f"{len(runs)} runs are declared together.",
            "Reserve a single run by itself.",
        )
    plans = []
    for run in runs:
        _check_fields(run)
        plans.append(check_new_run(state, run))
    ids = [run["run_id"] for run in runs]
    if len(set(ids)) != len(ids):
        raise InputError("A run is declared twice in one reservation.")
    envelopes = [Envelope.from_dict(data) for data in body["envelopes"]]
    check_modes(state, envelopes)
    _check_joint_envelopes(plans, envelopes)
    for plan in plans:
        check_unit(state, plan, [envelope.block for envelope in envelopes])
    check_budgets(state, envelopes)
    check_arrival(state, ids[0], envelopes)


def _check_fields(run: Any) -> None:
    if (
        not isinstance(run, dict)
        or run.keys() != _RUN_FIELDS.keys()
        or any(type(run[name]) is not kind for name, kind in _RUN_FIELDS.items())
    ):
        raise InputError("A run declared together with others has wrong fields.")


def _check_joint_envelopes(plans: list[Plan], envelopes: list[Envelope]) -> None:
    """Each block and role has one envelope, for the events of all runs."""
    check_purposes(envelopes)
    if any(plan.owners is not None for plan in plans):
        raise InputError(
            "A run with owners is declared together with others.",
            "Reserve it by itself: its owners have budgets of their own.",
        )
    for envelope in envelopes:
        looks = [plan.evaluation for plan in plans if plan.evaluation is not None]
        deltas = [plan.delta for plan in plans]
        if envelope.purpose == "evaluation":
            deltas = [look.delta for look in looks]
        if not deltas:
            raise InputError("An evaluation envelope without planned looks.")
        if envelope.event != joint_event(plans, envelope.purpose):
            raise InputError(
                f"The {envelope.purpose} envelope of block {envelope.block!r} pays "
                "for other events than those of all the runs, in their order.",
                "Build it with joint_envelope.",
            )
        if envelope.delta_units < envelope_delta_units(max(deltas)):
            raise InputError(
                f"The {envelope.purpose} envelope of block {envelope.block!r} holds "
                "less delta than one of the plans uses."
            )


def advance_joint_reserve(state: LedgerState, entry: Entry) -> None:
    """Takes the envelopes out of their blocks once, and adds all the runs."""
    body = entry.body
    envelopes = tuple(Envelope.from_dict(data) for data in body["envelopes"])
    group = tuple(run["run_id"] for run in body["runs"])
    runs = [add_run(state, fields) for fields in body["runs"]]
    for run in runs:
        run.envelopes = envelopes
        run.group = group
    count_arrival(state, [envelope.block for envelope in envelopes])
    take_parts(state, runs, entry)
