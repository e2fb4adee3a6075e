"""Rules for reservations: who may take how much of which blocks.

Each rule is a pair: ``check`` raises and changes nothing, ``advance`` changes the
state and cannot fail after its check. Both see the state only, no clock, no storage.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NoReturn

from pft_ray.errors import BudgetError, InputError, SettledError
from pft_ray.ledger.block_rules import check_hex, read_plan
from pft_ray.ledger.budget import (
    PURPOSES,
    Envelope,
    delta_value,
    envelope_delta_units,
    epsilon_value,
)
from pft_ray.ledger.entries import Body, Entry, Position, label
from pft_ray.ledger.owner_blocks import check_owner_envelopes, owner_of
from pft_ray.ledger.records import Run
from pft_ray.ledger.share_rules import (
    check_modes,
    check_room,
    check_shares,
    hold_shares,
    settle_shares,
)
from pft_ray.ledger.shares import Part, RhoShare, part_from_dict
from pft_ray.ledger.turns import check_arrival

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.records import Block
    from pft_ray.ledger.state import LedgerState


def check_reserve(state: LedgerState, body: Body) -> None:
    """A run reserves whole envelopes, or shares of rho, all of them or none.

    Guarantee:
        For every block the epsilons and deltas of all reservations that were not
        given back sum to at most the block's (basic composition: it holds however
        later runs were chosen). Sums are exact integers.
    """
    parts = check_job(state, body)
    check_budgets(state, parts)
    check_arrival(state, body["run_id"], parts)


def check_job(state: LedgerState, body: Body) -> list[Part]:
    """Checks all of a reservation or request but the room for it.

    Returns:
        Its envelopes or shares.
    """
    check_hex(body["blind"], "blind", 32)
    plan = check_new_run(state, body)
    parts = [part_from_dict(data) for data in body["envelopes"]]
    check_modes(state, parts)
    envelopes, shares = _by_kind(parts)
    if not shares:
        _check_envelopes(plan, envelopes)
    if plan.owners is not None and not shares:
        blocks = {item.block: state.block(item.block) for item in envelopes}
        check_owner_envelopes(plan, envelopes, blocks)
    check_unit(state, plan, [part.block for part in parts])
    if shares:
        check_shares(state, plan, shares)
    return parts


def check_new_run(state: LedgerState, body: Body) -> Plan:
    """Checks a new run's id, name and plan digest; returns its plan."""
    run_id = label(body["run_id"], "The run id")
    label(body["name"], "The run name")
    if run_id in state.runs:
        raise InputError(
            f"A run {run_id!r} has a reservation already.",
            "Run ids are used once: take a new one or resume the run.",
        )
    plan = read_plan(body["plan"])
    if plan.digest != body["plan_digest"]:
        raise InputError("The plan digest of a reservation is not the plan's.")
    return plan


def check_unit(state: LedgerState, plan: Plan, blocks: Iterable[str]) -> None:
    """A plan reserves on blocks of its own unit."""
    for name in blocks:
        if state.block(name).unit != plan.unit:
            raise InputError(
                f"The plan's unit is {plan.unit}, that of block "
                f"{name!r} is {state.block(name).unit}.",
                "Reserve on a block of the plan's unit.",
            )


def _by_kind(parts: Iterable[Part]) -> tuple[list[Envelope], list[RhoShare]]:
    envelopes, shares = [], []
    for part in parts:
        if isinstance(part, RhoShare):
            shares.append(part)
        else:
            envelopes.append(part)
    return envelopes, shares


def check_purposes(envelopes: list[Envelope]) -> list[str]:
    """Checks that each block and purpose has one envelope, and training has one.

    Returns:
        The purposes, one an envelope.
    """
    pairs = [(envelope.purpose, envelope.block) for envelope in envelopes]
    purposes: list[str] = [envelope.purpose for envelope in envelopes]
    if "training" not in purposes or len(set(pairs)) != len(pairs):
        raise InputError(
            "A reservation needs a training envelope and at most one a block "
            "and purpose."
        )
    if purposes.count("evaluation") > 1:
        raise InputError("A reservation has more than one evaluation envelope.")
    return purposes


def _check_envelopes(plan: Plan, envelopes: list[Envelope]) -> None:
    """Envelopes pay for the plan's own events at the plan's own delta."""
    purposes = check_purposes(envelopes)
    if plan.evaluation is None and "evaluation" in purposes:
        raise InputError("An evaluation envelope without planned looks.")
    wanted = {PURPOSES[0]: (plan.event, plan.delta)}
    if plan.evaluation is not None:
        wanted[PURPOSES[1]] = (plan.evaluation.event, plan.evaluation.delta)
    for envelope in envelopes:
        event, delta = wanted[envelope.purpose]
        of_an_owner = plan.owners is not None and envelope.purpose == "training"
        if not of_an_owner and envelope.event != event:
            raise InputError(
                f"The {envelope.purpose} envelope of block {envelope.block!r} "
                "pays for another event than the plan's.",
                "What is charged is what is executed: build it from the plan.",
            )
        if envelope.delta_units < envelope_delta_units(delta):
            raise InputError(
                f"The {envelope.purpose} envelope of block {envelope.block!r} "
                "holds less delta than the plan uses."
            )


def check_budgets(state: LedgerState, parts: Iterable[Part]) -> None:
    """Checks that every block holds what is asked of it together.

    Raises:
        BudgetError: One does not.
    """
    envelopes, shares = _by_kind(parts)
    check_room(state, shares)
    asked: dict[str, tuple[int, int]] = {}
    for envelope in envelopes:
        epsilon, delta = asked.get(envelope.block, (0, 0))
        asked[envelope.block] = (
            epsilon + envelope.epsilon_units,
            delta + envelope.delta_units,
        )
    for name, (epsilon, delta) in asked.items():
        block = state.block(name)
        if (
            epsilon > block.remaining_epsilon_units
            or delta > block.remaining_delta_units
        ):
            _refuse(block, epsilon, delta)


def _refuse(block: Block, epsilon_units: int, delta_units: int) -> NoReturn:
    details = {
        "block": block.name,
        "remaining_epsilon": epsilon_value(block.remaining_epsilon_units),
        "remaining_delta": delta_value(block.remaining_delta_units),
        "asked_epsilon": epsilon_value(epsilon_units),
        "asked_delta": delta_value(delta_units),
    }
    owner = owner_of(block.predicate)
    if owner is not None:
        details["owner"] = owner
    whose = "" if owner is None else f"The account of owner {owner!r} is short: "
    raise BudgetError(
        f"{whose}{'b' if whose else 'B'}lock {block.name!r} has epsilon "
        f"{details['remaining_epsilon']:g} and delta "
        f"{details['remaining_delta']:g} left; the run asks for "
        f"{details['asked_epsilon']:g} and {details['asked_delta']:g}.",
        "Ask for less, or create another block with `pft budget create`.",
        details,
    )


def advance_reserve(state: LedgerState, entry: Entry) -> None:
    """Takes what was asked for out of the blocks."""
    run = add_run(state, entry.body)
    count_arrival(state, run.blocks)
    take_parts(state, [run], entry)


def add_run(state: LedgerState, body: Body) -> Run:
    """Adds a run that holds nothing yet."""
    plan = read_plan(body["plan"])
    parts = [part_from_dict(data) for data in body.get("envelopes", ())]
    envelopes, shares = _by_kind(parts)
    run = Run(
        run_id=body["run_id"],
        name=body["name"],
        plan=plan,
        plan_digest=body["plan_digest"],
        envelopes=tuple(envelopes),
        shares=tuple(shares),
        reservation=Position(0, ""),
        reservation_sequence=0,
        phase_ends=tuple(accumulate(phase.num_steps for phase in plan.phases)),
        num_steps=plan.num_steps,
        num_steps_max=plan.num_steps_max,
    )
    state.runs[run.run_id] = run
    return run


def count_arrival(state: LedgerState, blocks: Iterable[str]) -> None:
    """Counts one more arrival on each of the blocks."""
    for name in set(blocks):
        state.blocks[name].num_arrivals += 1


def take_parts(state: LedgerState, runs: Sequence[Run], entry: Entry) -> None:
    """Takes what runs share out of their blocks; the entry is their reservation.

    Args:
        state: The ledger's state.
        runs: One run, or those that were declared together.
        entry: The entry that reserves for them.
    """
    for envelope in runs[0].envelopes:
        block = state.blocks[envelope.block]
        block.reserved_epsilon_units += envelope.epsilon_units
        block.reserved_delta_units += envelope.delta_units
    state.num_reservations += 1
    for run in runs:
        run.holdings = hold_shares(state, run.shares)
        run.reservation = entry.position
        run.reservation_sequence = state.num_reservations
        run.status = "reserved"
        _count_reservation(state, run, 1)


def _count_reservation(state: LedgerState, run: Run, change: int) -> None:
    """Counts a run on each of its blocks, so that no status has to walk all runs."""
    for name in set(run.blocks):
        state.blocks[name].num_reservations += change


def _members(state: LedgerState, run: Run) -> list[Run]:
    """Returns the runs that share the run's envelopes: itself, or its whole group."""
    return [state.runs[run_id] for run_id in run.group] or [run]


def check_release_reservation(state: LedgerState, body: Body) -> None:
    """An envelope is given back only while nothing of it was charged.

    A filter run gives back what it was not charged, once.
    """
    run = state.run(body["run_id"])
    if run.status == "waiting":
        raise InputError(
            f"Run {run.run_id!r} waits for its turn and has no reservation.",
            "Take it out of the queue with `pft budget leave`.",
            {"run_id": run.run_id},
        )
    is_settled = any(holding.is_settled for holding in run.holdings)
    if not run.holds_envelopes or is_settled:
        raise SettledError(
            f"Run {run.run_id!r} is {run.status}: it gave its reservation back "
            "already, or never had one.",
            "Nothing is left to give back.",
            {"run_id": run.run_id, "status": run.status},
        )
    if is_charged(state, run) and not run.holdings:
        raise BudgetError(
            f"Run {run.run_id!r} was charged: its envelopes cannot be given back.",
            "A charge is never refunded.",
            {"run_id": run.run_id},
        )


def is_charged(state: LedgerState, run: Run) -> bool:
    """Whether the run, or one that shares its envelopes, was charged."""
    return any(member.is_charged for member in _members(state, run))


def advance_release_reservation(state: LedgerState, entry: Entry) -> None:
    """Returns what was reserved to its blocks and closes the run for good."""
    give_back(state, state.runs[entry.body["run_id"]], "released")


def give_back(state: LedgerState, run: Run, status: str) -> None:
    """Returns envelopes, or what shares were not charged; ``status`` is the last.

    Runs that were declared together are closed together.
    """
    for envelope in run.envelopes:
        block = state.blocks[envelope.block]
        block.reserved_epsilon_units -= envelope.epsilon_units
        block.reserved_delta_units -= envelope.delta_units
    settle_shares(state, run)
    for member in _members(state, run):
        member.close_attempt()
        if member.holdings and member.is_charged:
            member.status = "settled"
            continue
        member.status = status
        _count_reservation(state, member, -1)


def use_envelopes(state: LedgerState, run: Run) -> None:
    """Books the run's whole envelopes as used; called before its first charge.

    Runs that were declared together share theirs: the first charge of any uses them.
    """
    if is_charged(state, run):
        return
    for envelope in run.envelopes:
        block = state.blocks[envelope.block]
        block.used_epsilon_units += envelope.epsilon_units
        block.used_delta_units += envelope.delta_units
