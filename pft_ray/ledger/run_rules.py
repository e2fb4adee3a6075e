"""Rules for a run's life: epochs, attempts, grants, looks, checkpoints, its end.

Pairs of ``check`` (raises, changes nothing) and ``advance`` (cannot fail after it).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from pft_ray.errors import (
    AttemptClosedError,
    BudgetExhausted,
    GrantRefusedError,
    InputError,
    ReservationExpiredError,
    ResumeError,
    SettledError,
    StaleCoordinatorError,
)
from pft_ray.ledger.block_rules import check_hex
from pft_ray.ledger.entries import Body, Entry, label
from pft_ray.ledger.records import (
    END_STATUSES,
    Attempt,
    Checkpoint,
    Look,
    Run,
)
from pft_ray.ledger.reserve_rules import use_envelopes
from pft_ray.ledger.share_rules import charge_shares, settle_shares

if TYPE_CHECKING:
    from pft_ray.ledger.state import LedgerState

NONCE_DIGITS = 32


def owned_run(state: LedgerState, body: Body) -> Run:
    """Returns the run named if the epoch given owns it and it is running.

    Raises:
        StaleCoordinatorError: Another epoch is the run's newest.
        AttemptClosedError: The run ended or gave its reservation back.
        ReservationExpiredError: Its reservation passed its time limit.
    """
    run = state.run(body["run_id"])
    refuse_expired(run)
    if body["epoch"] != run.epoch:
        raise StaleCoordinatorError(
            f"Run {run.run_id!r} is owned by epoch {run.epoch}, not {body['epoch']}.",
            "A newer coordinator took the run: stop this one.",
            {"run_id": run.run_id, "epoch": run.epoch},
        )
    if run.status != "running":
        raise AttemptClosedError(
            f"Run {run.run_id!r} is {run.status}.",
            "Resume it with a new epoch, or start a new run.",
            {"run_id": run.run_id, "status": run.status},
        )
    return run


def refuse_expired(run: Run) -> None:
    """Refuses a run whose reservation went back when its time limit passed.

    Raises:
        ReservationExpiredError: It did.
    """
    if run.status == "expired":
        raise ReservationExpiredError(
            f"The reservation of run {run.run_id!r} passed its time limit unused.",
            "Reserve anew; give --expires more time.",
            {"run_id": run.run_id},
        )


def check_epoch(state: LedgerState, body: Body) -> None:
    """A new coordinator takes a run that is not over; its epoch is one more."""
    run = state.run(body["run_id"])
    refuse_expired(run)
    if run.status == "waiting":
        raise ResumeError(
            f"Run {run.run_id!r} waits for its reservation.",
            "Nothing runs before it is admitted: `pft budget queue` shows its place.",
            {"run_id": run.run_id, "status": run.status},
        )
    if run.is_final:
        raise ResumeError(
            f"Run {run.run_id!r} is {run.status} and cannot be resumed.",
            "Start a new run.",
            {"run_id": run.run_id, "status": run.status},
        )
    if body["epoch"] != run.epoch + 1:
        raise StaleCoordinatorError(
            f"Epoch {body['epoch']} cannot follow epoch {run.epoch}."
        )


def advance_epoch(state: LedgerState, entry: Entry) -> None:
    """Fences every older coordinator off and ends its attempt."""
    run = state.runs[entry.body["run_id"]]
    run.close_attempt()
    run.epoch = entry.body["epoch"]
    run.status = "running"


def check_attempt(state: LedgerState, body: Body) -> None:
    """Attempts are numbered by the ledger, from 1 without gaps."""
    run = owned_run(state, body)
    label(body["reason"], "The attempt's reason")
    if body["attempt"] != len(run.attempts) + 1:
        raise AttemptClosedError(
            f"Attempt {body['attempt']} of run {run.run_id!r} is not the next one."
        )
    if body["start"] > run.num_steps:
        raise InputError(
            f"An attempt from step {body['start']} of {run.num_steps} steps."
        )


def advance_attempt(state: LedgerState, entry: Entry) -> None:
    """Ends the attempt before and opens a new one."""
    run = state.runs[entry.body["run_id"]]
    run.close_attempt()
    start = entry.body["start"]
    run.attempts.append(Attempt(entry.body["attempt"], start, start))
    run.has_open_attempt = True


def check_grant(state: LedgerState, body: Body) -> None:
    """Steps are charged in increasing order, none twice, up to T_max in all.

    Guarantee:
        Over all attempts of a run the granted steps number at most its plan's T_max,
        so the steps that were ever noised are at most those its envelope pays for,
        whatever stopped or restarted it.
    """
    run = owned_run(state, body)
    attempt = run.open_attempt
    if attempt is None or attempt.number != body["attempt"]:
        raise AttemptClosedError(
            f"Attempt {body['attempt']} of run {run.run_id!r} is not open.",
            "Open a new attempt from the last registered checkpoint.",
            {"run_id": run.run_id, "attempt": body["attempt"]},
        )
    start, stop = body["start"], body["stop"]
    _check_range(run, attempt, start, stop)
    check_hex(body["nonce"], "nonce", NONCE_DIGITS)
    if body["nonce"] in attempt.grants:
        raise GrantRefusedError(
            "The nonce was used for other steps.", "Use a nonce for one request."
        )
    charged = run.num_steps_charged + stop - start
    if charged > run.num_steps_max:
        left = run.num_steps_max - run.num_steps_charged
        raise BudgetExhausted(
            f"Run {run.run_id!r} has {left} of {run.num_steps_max} paid steps left "
            f"and asks for {stop - start}.",
            "The run ends here with what it has.",
            {"run_id": run.run_id, "remaining_steps": left},
        )
    if body["charged"] != charged:
        raise GrantRefusedError(
            f"A grant says {body['charged']} steps are charged, it is {charged}."
        )


def _check_range(run: Run, attempt: Attempt, start: int, stop: int) -> None:
    what = None
    if not start < stop <= run.num_steps:
        what = f"is not a range inside the {run.num_steps} planned steps"
    elif start < attempt.next_step:
        what = f"overlaps what was granted up to step {attempt.next_step}"
    elif stop - start > run.plan.grant_size:
        what = f"is longer than the grant size {run.plan.grant_size}"
    elif stop > run.phase_ends[bisect_right(run.phase_ends, start)]:
        what = "spans two phases"
    if what:
        raise GrantRefusedError(
            f"The steps [{start}, {stop}) of run {run.run_id!r}: the range {what}.",
            "Ask for the next steps of this attempt and phase.",
            {"run_id": run.run_id, "attempt": attempt.number},
        )


def find_grant(state: LedgerState, body: Body) -> int | None:
    """Returns the sequence of the grant that a repeated request was given before.

    Raises:
        StaleCoordinatorError: Another epoch is the run's newest.
        AttemptClosedError: The run is not running.
    """
    attempt = owned_run(state, body).open_attempt
    if attempt is None or attempt.number != body["attempt"]:
        return None
    start, stop, sequence = attempt.grants.get(body["nonce"], (0, 0, 0))
    return sequence if (start, stop) == (body["start"], body["stop"]) else None


def advance_grant(state: LedgerState, entry: Entry) -> None:
    """Charges the steps; the first charge uses the run's envelopes whole.

    Shares of rho are charged step by step.
    """
    body = entry.body
    run = state.runs[body["run_id"]]
    use_envelopes(state, run)
    charge_shares(state, run, "training", body["stop"] - body["start"])
    attempt = run.attempts[-1]
    attempt.next_step = body["stop"]
    attempt.grants[body["nonce"]] = (body["start"], body["stop"], entry.sequence)
    run.num_steps_charged = body["charged"]


def check_look(state: LedgerState, body: Body) -> None:
    """Looks are numbered from 0 without gaps, up to the number that is paid for."""
    run = owned_run(state, body)
    label(body["position"], "The look's position")
    if run.evaluation_block is None or body["block"] != run.evaluation_block:
        raise InputError(
            f"Run {run.run_id!r} has no evaluation envelope on block {body['block']!r}."
        )
    evaluation = run.plan.evaluation
    maximum = evaluation.num_looks_max if evaluation is not None else 0
    if len(run.looks) >= maximum:
        raise BudgetExhausted(
            f"Run {run.run_id!r} used its {maximum} looks at {body['block']!r}.",
            "Released values are kept: show them again instead.",
            {"run_id": run.run_id, "remaining_looks": 0},
        )
    if body["look"] != len(run.looks):
        raise GrantRefusedError(f"Look {body['look']} is not the next one.")


def advance_look(state: LedgerState, entry: Entry) -> None:
    """Charges the look."""
    run = state.runs[entry.body["run_id"]]
    use_envelopes(state, run)
    charge_shares(state, run, "evaluation", 1)
    body = entry.body
    run.looks.append(Look(body["position"], body["block"], body["epoch"]))


def check_release(state: LedgerState, body: Body) -> None:
    """A value is stored once, by the epoch that charged its look before."""
    run = owned_run(state, body)
    if body["look"] >= len(run.looks):
        raise GrantRefusedError(
            f"A value for look {body['look']}, which was not charged.",
            "Charge the look before its noise is drawn.",
        )
    if run.looks[body["look"]].epoch != body["epoch"]:
        raise GrantRefusedError(
            f"Look {body['look']} was charged by another coordinator.",
            "Its noise may have been drawn and lost: charge a new look.",
        )
    if body["look"] in run.released:
        raise GrantRefusedError(
            f"Look {body['look']} has a released value already.",
            "A released value is shown again, never drawn again.",
        )


def advance_release(state: LedgerState, entry: Entry) -> None:
    """Keeps the value for ever."""
    body = entry.body
    state.runs[body["run_id"]].released[body["look"]] = body["values"]


def check_checkpoint(state: LedgerState, body: Body) -> None:
    """A checkpoint lies within what its attempt was granted."""
    run = owned_run(state, body)
    label(body["name"], "The checkpoint")
    number = body["attempt"]
    if not 1 <= number <= len(run.attempts):
        raise InputError(f"A checkpoint of attempt {number}, which never was.")
    attempt = run.attempts[number - 1]
    if not attempt.start <= body["step"] <= attempt.next_step:
        raise InputError(
            f"A checkpoint at step {body['step']} of attempt {number}, which covers "
            f"steps {attempt.start} to {attempt.next_step}."
        )


def advance_checkpoint(state: LedgerState, entry: Entry) -> None:
    """Adds the checkpoint."""
    body = entry.body
    run = state.runs[body["run_id"]]
    run.checkpoints.append(Checkpoint(body["attempt"], body["step"], body["name"]))


def check_end(state: LedgerState, body: Body) -> None:
    """A run ends with one of the known statuses and no more steps than charged.

    What ended for good is not settled a second time.
    """
    run = state.run(body["run_id"])
    if run.is_final and run.status != "expired":
        raise SettledError(
            f"Run {run.run_id!r} is {run.status} already.",
            "A run is settled once.",
            {"run_id": run.run_id, "status": run.status},
        )
    run = owned_run(state, body)
    if body["status"] not in END_STATUSES:
        raise InputError(
            f"A run cannot end as {body['status']!r}.",
            f"Statuses are {', '.join(END_STATUSES)}.",
        )
    if body["num_steps_released"] > run.num_steps_charged:
        raise InputError(
            f"{body['num_steps_released']} steps released, "
            f"{run.num_steps_charged} charged."
        )


def advance_end(state: LedgerState, entry: Entry) -> None:
    """Closes the run; an interrupted one can be taken by a new epoch.

    A filter run that is over for good gives back what it was not charged.
    """
    run = state.runs[entry.body["run_id"]]
    run.close_attempt()
    run.status = entry.body["status"]
    run.num_steps_released = entry.body["num_steps_released"]
    if run.is_final:
        settle_shares(state, run)
