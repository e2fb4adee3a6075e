"""Rules of the waiting queue: requests, admissions, leaving, expiry, its order.

Pairs of ``check`` (raises, changes nothing) and ``advance`` (cannot fail after it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.errors import BudgetError, InputError, SettledError
from pft_ray.ledger.admission import Job, Order, is_possible
from pft_ray.ledger.block_rules import check_hex
from pft_ray.ledger.reserve_rules import (
    add_run,
    check_budgets,
    check_job,
    count_arrival,
    give_back,
    take_parts,
)
from pft_ray.ledger.turns import check_turn, job_of, supplies_for, words_of

if TYPE_CHECKING:
    from pft_ray.ledger.entries import Body, Entry
    from pft_ray.ledger.records import Run
    from pft_ray.ledger.state import LedgerState


def check_request(state: LedgerState, body: Body) -> None:
    """A run joins the queue with a demand that may be met some day."""
    parts = check_job(state, body)
    refuse_impossible(state, job_of(state, body["run_id"], parts))


def refuse_impossible(state: LedgerState, job: Job) -> None:
    """Refuses a demand that no block can meet however long it waits.

    Raises:
        BudgetError: A block's budget without what charges used is smaller.
    """
    supplies = supplies_for(state, [job])
    if is_possible(job, supplies):
        return
    names = [
        words_of(name)
        for name, parts in job.demand.items()
        if any(a > b for a, b in zip(parts, supplies[name].unused, strict=True))
    ]
    raise BudgetError(
        f"Run {job.name!r} asks for more of block {names[0]!r} than is not used yet: "
        "no waiting would help.",
        "Ask for less, create another block with `pft budget create`, or move rho to a "
        "purpose with `pft budget move`.",
        {"run_id": job.name, "impossible_blocks": names},
    )


def advance_request(state: LedgerState, entry: Entry) -> None:
    """Puts the run at the end of the queue; it holds nothing yet."""
    run = add_run(state, entry.body)
    run.status = "waiting"
    run.time_limit_ms = entry.body["time_limit_ms"]
    count_arrival(state, run.blocks)
    state.waiting[run.run_id] = job_of(state, run.run_id, run.parts)


def _waiting_run(state: LedgerState, run_id: str) -> Run:
    """Returns a run that waits.

    Raises:
        UnknownRunError: The ledger does not know it.
        SettledError: It left, was admitted, or never waited.
    """
    run = state.run(run_id)
    if run_id not in state.waiting:
        raise SettledError(
            f"Run {run_id!r} is {run.status}: it does not wait.",
            "`pft budget queue` shows who waits.",
            {"run_id": run_id, "status": run.status},
        )
    return run


def check_admit(state: LedgerState, body: Body) -> None:
    """A waiting run reserves all its envelopes when its turn has come.

    Guarantee:
        An admission is refused wherever a reservation would be: committed and
        reserved budget never exceed the block's, whatever the order of admission.
    """
    run = _waiting_run(state, body["run_id"])
    check_hex(body["blind"], "blind", 32)
    check_budgets(state, run.parts)
    check_turn(state, run.run_id)


def advance_admit(state: LedgerState, entry: Entry) -> None:
    """Takes the envelopes out of their blocks; the run waits no more."""
    run_id = entry.body["run_id"]
    del state.waiting[run_id]
    take_parts(state, [state.runs[run_id]], entry)


def check_leave(state: LedgerState, body: Body) -> None:
    """Only who waits can leave."""
    _waiting_run(state, body["run_id"])


def advance_leave(state: LedgerState, entry: Entry) -> None:
    """Takes the run out of the queue for good."""
    run_id = entry.body["run_id"]
    del state.waiting[run_id]
    state.runs[run_id].status = "left"


def can_expire(run: Run) -> bool:
    """Whether a reservation may go back when its time limit has passed."""
    return (
        run.time_limit_ms > 0
        and run.holds_envelopes
        and not run.is_charged
        and not run.is_final
    )


def check_expire(state: LedgerState, body: Body) -> None:
    """Only a reservation with a time limit expires, while nothing was charged.

    That the time has passed is the word of the clock that appends the row: rules see
    no clock. A wrong clock costs a run its place, never a guarantee.
    """
    run = state.run(body["run_id"])
    if run.is_charged:
        raise BudgetError(
            f"Run {run.run_id!r} was charged: its reservation cannot expire.",
            "A charge is never refunded.",
            {"run_id": run.run_id},
        )
    if run.is_final:
        raise SettledError(
            f"Run {run.run_id!r} is {run.status} already.",
            "A reservation goes back once.",
            {"run_id": run.run_id, "status": run.status},
        )
    if not can_expire(run):
        raise InputError(
            f"Run {run.run_id!r} is {run.status} and holds no reservation with a "
            "time limit.",
            "Give a reservation back with `pft budget release`.",
            {"run_id": run.run_id, "status": run.status},
        )


def advance_expire(state: LedgerState, entry: Entry) -> None:
    """Returns the envelopes to their blocks and closes the run for good."""
    give_back(state, state.runs[entry.body["run_id"]], "expired")


def check_admission(state: LedgerState, body: Body) -> None:
    """The order is one of the known ones, and another than before."""
    if Order(body["order"], body["dpf_n"]) == state.order:
        raise InputError(f"The admission order is {body['order']} already.")


def advance_admission(state: LedgerState, entry: Entry) -> None:
    """Sets the order for all who wait and all who come."""
    state.order = Order(entry.body["order"], entry.body["dpf_n"])
