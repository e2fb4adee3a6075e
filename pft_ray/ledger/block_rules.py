"""Rules for data sets, blocks and reservations: who may reserve how much.

Each rule is a pair: ``check`` raises and changes nothing, ``advance`` changes the
state and cannot fail after its check. Both see the state only, no clock, no storage.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn

from pft_ray.accounting.plan import Plan
from pft_ray.errors import BudgetError, InputError, PlanError, SettledError
from pft_ray.ledger.budget import (
    PURPOSES,
    Envelope,
    delta_value,
    envelope_delta_units,
    epsilon_value,
)
from pft_ray.ledger.entries import SCHEMA_VERSION, Body, Entry, Position, label
from pft_ray.ledger.records import Block, Dataset, Run
from pft_ray.ledger.turns import check_arrival

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pft_ray.ledger.state import LedgerState

_HEX = frozenset("0123456789abcdef")


def check_hex(value: str, name: str, num_digits: int) -> None:
    """Checks that ``value`` is lower-case hex of the length given."""
    if len(value) != num_digits or not _HEX.issuperset(value):
        raise InputError(f"{name} is not {num_digits} lower-case hex digits.")


def check_genesis(state: LedgerState, body: Body) -> None:
    """The first entry, and only the first, names the ledger and its schema."""
    if state.sequence:
        raise InputError("A second genesis entry.")
    check_hex(body["ledger_id"], "ledger_id", 32)
    if body["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"A ledger of schema {body['schema']}; this pft_ray reads "
            f"{SCHEMA_VERSION}.",
            "Upgrade pft_ray.",
        )


def advance_genesis(state: LedgerState, entry: Entry) -> None:
    """Gives the ledger its id."""
    state.ledger_id = entry.body["ledger_id"]


def check_dataset(state: LedgerState, body: Body) -> None:
    """A name is registered once, with at least one namespace."""
    name = label(body["name"], "The data set")
    if name in state.datasets:
        raise InputError(f"A data set {name!r} is registered already.")
    namespaces = body["namespaces"]
    if not namespaces or sorted(set(namespaces)) != namespaces:
        raise InputError("Namespaces have to be distinct and sorted.")
    for namespace in namespaces:
        label(namespace, "A namespace")
    check_hex(body["commitment"], "commitment", 32)
    check_hex(body["key_check"], "key_check", 32)
    known = state.key_check
    if known is not None and known != body["key_check"]:
        raise InputError("The data set was fingerprinted under another key.")


def advance_dataset(state: LedgerState, entry: Entry) -> None:
    """Adds the data set."""
    fields = {**entry.body, "namespaces": tuple(entry.body["namespaces"])}
    state.datasets[fields["name"]] = Dataset(**fields)


def check_block(state: LedgerState, body: Body) -> None:
    """A block is new, lies in a registered data set and holds some budget."""
    name = label(body["name"], "The block")
    if name in state.blocks:
        raise InputError(f"A block {name!r} exists already.")
    state.dataset(body["dataset"])
    if not isinstance(body["predicate"].get("kind"), str):
        raise InputError(
            f"The predicate of block {name!r} has no kind.",
            'Give one such as {"kind": "hash-split", ...}.',
        )
    if body["unit"] not in ("record", "user"):
        raise InputError(
            f"The unit of block {name!r} is {body['unit']!r}.",
            "Units are record and user.",
        )
    if body["mode"] != "plan":
        raise InputError(
            f"Block {name!r} asks for mode {body['mode']!r}.",
            "This version keeps blocks of mode plan.",
        )
    if body["epsilon_units"] < 1 or not 1 <= body["delta_units"] < 10**18:
        raise InputError(
            f"Block {name!r} has no usable budget.",
            "Give epsilon above 0 and delta between 0 and 1.",
        )


def advance_block(state: LedgerState, entry: Entry) -> None:
    """Adds the block."""
    block = Block(**entry.body)
    state.blocks[block.name] = block


def check_non_private(state: LedgerState, body: Body) -> None:
    """A run without a guarantee is possible on public data only."""
    dataset = state.dataset(body["dataset"])
    label(body["run"], "The run")
    if body["block"] and state.block(body["block"]).dataset != dataset.name:
        raise InputError(
            f"Block {body['block']!r} is not part of data set {dataset.name!r}."
        )
    if not dataset.public:
        raise InputError(
            f"A non-private run on {dataset.name!r}, which is private data.",
            "Only data registered as public can be used without a guarantee.",
            {"dataset": dataset.name},
        )


def advance_non_private(state: LedgerState, entry: Entry) -> None:
    """Marks the data set, and the block when one is named."""
    dataset, block = entry.body["dataset"], entry.body["block"]
    state.num_non_private[dataset] = state.num_non_private.get(dataset, 0) + 1
    if block:
        state.blocks[block].num_non_private += 1


def read_plan(data: Any) -> Plan:
    """Reads a stored plan; whatever is wrong with it is a :class:`PlanError`."""
    try:
        return Plan.from_dict(data)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError("The plan of a reservation cannot be read.") from error


def check_reserve(state: LedgerState, body: Body) -> None:
    """A run reserves whole envelopes, all of them or none.

    Guarantee:
        For every block the epsilons and deltas of all reservations that were not
        given back sum to at most the block's (basic composition: it holds however
        later runs were chosen). Sums are exact integers.
    """
    envelopes = check_job(state, body)
    check_budgets(state, envelopes)
    check_arrival(state, body["run_id"], envelopes)


def check_job(state: LedgerState, body: Body) -> list[Envelope]:
    """Checks all of a reservation or request but the room for it.

    Returns:
        Its envelopes.
    """
    run_id = label(body["run_id"], "The run id")
    label(body["name"], "The run name")
    check_hex(body["blind"], "blind", 32)
    if run_id in state.runs:
        raise InputError(
            f"A run {run_id!r} has a reservation already.",
            "Run ids are used once: take a new one or resume the run.",
        )
    plan = read_plan(body["plan"])
    if plan.digest != body["plan_digest"]:
        raise InputError("The plan digest of a reservation is not the plan's.")
    envelopes = [Envelope.from_dict(data) for data in body["envelopes"]]
    _check_envelopes(plan, envelopes)
    for envelope in envelopes:
        if state.block(envelope.block).unit != plan.unit:
            raise InputError(
                f"The plan's unit is {plan.unit}, that of block "
                f"{envelope.block!r} is {state.block(envelope.block).unit}.",
                "Reserve on a block of the plan's unit.",
            )
    return envelopes


def _check_envelopes(plan: Plan, envelopes: list[Envelope]) -> None:
    """Envelopes pay for the plan's own events at the plan's own delta."""
    pairs = [(envelope.purpose, envelope.block) for envelope in envelopes]
    purposes = [envelope.purpose for envelope in envelopes]
    if "training" not in purposes or len(set(pairs)) != len(pairs):
        raise InputError(
            "A reservation needs a training envelope and at most one a block "
            "and purpose."
        )
    if purposes.count("evaluation") > 1:
        raise InputError("A reservation has more than one evaluation envelope.")
    if plan.evaluation is None and "evaluation" in purposes:
        raise InputError("An evaluation envelope without planned looks.")
    wanted = {PURPOSES[0]: (plan.event, plan.delta)}
    if plan.evaluation is not None:
        wanted[PURPOSES[1]] = (plan.evaluation.event, plan.evaluation.delta)
    for envelope in envelopes:
        event, delta = wanted[envelope.purpose]
        if envelope.event != event:
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


def check_budgets(state: LedgerState, envelopes: Iterable[Envelope]) -> None:
    """Checks that every block holds what the envelopes take of it together.

    Raises:
        BudgetError: One does not.
    """
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
    raise BudgetError(
        f"Block {block.name!r} has epsilon {details['remaining_epsilon']:g} and delta "
        f"{details['remaining_delta']:g} left; the run asks for "
        f"{details['asked_epsilon']:g} and {details['asked_delta']:g}.",
        "Ask for less, or create another block with `pft budget create`.",
        details,
    )


def advance_reserve(state: LedgerState, entry: Entry) -> None:
    """Takes the envelopes out of their blocks."""
    run = add_run(state, entry.body)
    take_envelopes(state, run, entry)


def add_run(state: LedgerState, body: Body) -> Run:
    """Adds a run that holds nothing yet; its blocks count the arrival."""
    plan = read_plan(body["plan"])
    run = Run(
        run_id=body["run_id"],
        name=body["name"],
        plan=plan,
        plan_digest=body["plan_digest"],
        envelopes=tuple(Envelope.from_dict(data) for data in body["envelopes"]),
        reservation=Position(0, ""),
        reservation_sequence=0,
        phase_ends=tuple(accumulate(phase.num_steps for phase in plan.phases)),
        num_steps=plan.num_steps,
        num_steps_max=plan.num_steps_max,
    )
    state.runs[run.run_id] = run
    for name in {envelope.block for envelope in run.envelopes}:
        state.blocks[name].num_arrivals += 1
    return run


def take_envelopes(state: LedgerState, run: Run, entry: Entry) -> None:
    """Takes the run's envelopes out of their blocks; the entry is its reservation."""
    for envelope in run.envelopes:
        block = state.blocks[envelope.block]
        block.reserved_epsilon_units += envelope.epsilon_units
        block.reserved_delta_units += envelope.delta_units
    state.num_reservations += 1
    run.reservation = entry.position
    run.reservation_sequence = state.num_reservations
    run.status = "reserved"


def check_release_reservation(state: LedgerState, body: Body) -> None:
    """An envelope is given back only while nothing of it was charged."""
    run = state.run(body["run_id"])
    if run.status == "waiting":
        raise InputError(
            f"Run {run.run_id!r} waits for its turn and has no reservation.",
            "Take it out of the queue with `pft budget leave`.",
            {"run_id": run.run_id},
        )
    if not run.holds_envelopes:
        raise SettledError(
            f"Run {run.run_id!r} is {run.status}: it gave its reservation back "
            "already, or never had one.",
            "Nothing is left to give back.",
            {"run_id": run.run_id, "status": run.status},
        )
    if run.is_charged:
        raise BudgetError(
            f"Run {run.run_id!r} was charged: its envelopes cannot be given back.",
            "A charge is never refunded.",
            {"run_id": run.run_id},
        )


def advance_release_reservation(state: LedgerState, entry: Entry) -> None:
    """Returns the envelopes to their blocks and closes the run for good."""
    give_back(state, state.runs[entry.body["run_id"]], "released")


def give_back(state: LedgerState, run: Run, status: str) -> None:
    """Returns a run's envelopes to their blocks; ``status`` is its last."""
    for envelope in run.envelopes:
        block = state.blocks[envelope.block]
        block.reserved_epsilon_units -= envelope.epsilon_units
        block.reserved_delta_units -= envelope.delta_units
    run.close_attempt()
    run.status = status


def use_envelopes(state: LedgerState, run: Run) -> None:
    """Books the run's whole envelopes as used; called before its first charge."""
    if run.is_charged:
        return
    for envelope in run.envelopes:
        block = state.blocks[envelope.block]
        block.used_epsilon_units += envelope.epsilon_units
        block.used_delta_units += envelope.delta_units
