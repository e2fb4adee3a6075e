"""Reserving for a job without training it, and waiting for its turn. No Ray here."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.calibration import largest_affordable
from pft_ray.assurance.claims import collect_claims
from pft_ray.cluster.filter_jobs import check_orders
from pft_ray.cluster.ledger_place import PATIENCE_S
from pft_ray.cluster.run_folder import RunFolder, new_run_id
from pft_ray.config import build_job, load_job
from pft_ray.errors import BudgetError, PftError
from pft_ray.ledger import FINAL_STATUSES, Ledger, ReservationClock, RhoShare
from pft_ray.ledger.home import events_file, keys_dir, ledger_location
from pft_ray.ledger.postgres_url import redacted
from pft_ray.ledger.queue import time_limit_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pft_ray.accounting.plan import Plan
    from pft_ray.config import BuiltJob
    from pft_ray.ledger import WaitingRun
    from pft_ray.ledger.shares import Part

    OnWait = Callable[[WaitingRun], None]

_POLL_S = 0.5
# A driver takes up no run that has one of these.
NOT_TAKEN = (*FINAL_STATUSES, "waiting")


def driver_ledger(location: str) -> Ledger:
    """Opens a ledger as drivers use it: once open, they wait for it when it restarts.

    What it refuses and reserves is told to the events in $PFT_HOME.
    """
    opened = Ledger.open(location, keys_dir=keys_dir(), create=False)
    opened.be_patient(PATIENCE_S)
    opened.observers.subscribe(events_file())
    return opened


def reserve_job(
    job_path: str | Path,
    *,
    expires_s: float | None = None,
    wait: bool = False,
    ledger: str | None = None,
    overrides: list[str] | None = None,
    on_wait: OnWait | None = None,
) -> dict[str, Any]:
    """Reserves what a run of the job needs; ``pft train`` then continues that run.

    Args:
        job_path: Job file.
        expires_s: How long the reservation may stay unused, in seconds.
        wait: Wait in the ledger's queue when it is not the run's turn.
        ledger: URL, or path from the current folder; default: the job's, else
            PFT_HOME's.
        overrides: ``section.key=value`` items.
        on_wait: Called about twice a second while the run waits.

    Returns:
        The run and what it holds, as JSON.

    Raises:
        BudgetError: The blocks do not hold it; nothing was reserved.
        MustWaitError: Without ``wait``: the admission order lets others go first.
        InputError: Job or time limit are not usable.
    """
    time_limit_ms(expires_s)  # before anything is priced
    built = build_job(load_job(job_path, overrides), Path(job_path).resolve().parent)
    location = (
        ledger_location(ledger)
        if ledger is not None
        else ledger_location(built.job.ledger.url, built.base_dir)
    )
    with driver_ledger(location) as opened:
        opened.require(collect_claims(built.output_dir))
        if not wait:
            check_budget(opened, built)
        folder = RunFolder(built.output_dir / new_run_id(built.job.name))
        folder.acquire()
        try:
            take_place(opened, folder, built, expires_s=expires_s, wait=wait)
            if wait:
                wait_for_turn(opened, folder, on_wait)
        finally:
            folder.release()
        return _result(opened, folder, built, expires_s)


def _result(
    ledger: Ledger, folder: RunFolder, built: BuiltJob, expires_s: float | None
) -> dict[str, Any]:
    """Returns what was reserved, as JSON."""
    return {
        "run_id": folder.run_id,
        "folder": str(folder.path),
        "status": ledger.queue.status(folder.run_id),
        "expires_s": expires_s,
        "blocks": [_taken(ledger, part) for part in built.parts],
    }


def _taken(ledger: Ledger, part: Part) -> dict[str, Any]:
    """Returns what a run holds of a block, as JSON."""
    block = ledger.block_status(part.block)
    row: dict[str, Any] = {"name": block.name, "epsilon_left": block.remaining_epsilon}
    if isinstance(part, RhoShare):
        return row | {"purpose": part.purpose, "rho": part.rho}
    return row | {"epsilon": part.epsilon, "delta": part.delta}


def check_budget(ledger: Ledger, built: BuiltJob) -> None:
    """Refuses a plan that does not fit its blocks, and says what would fit.

    Raises:
        BudgetError: A block has not enough left, or others go first.
    """
    check_orders(built, ledger)
    try:
        ledger.check_reservation(built.plan, built.parts)
    except BudgetError as error:
        is_training = error.details.get("block") == built.job.training_block
        if is_training and not built.shares and "remaining_epsilon" in error.details:
            raise with_advice(error, built.plan) from None
        raise


def take_place(
    ledger: Ledger,
    folder: RunFolder,
    built: BuiltJob,
    *,
    expires_s: float | None = None,
    wait: bool,
) -> None:
    """Writes plan.json and asks for the run's envelopes; it may wait afterwards."""
    folder.write_json("plan.json", plan_document(built))
    try:
        status = ledger.queue.request(
            folder.run_id,
            built.plan,
            built.parts,
            time_limit_s=expires_s,
            wait=wait,
        )
    except BaseException:
        give_up(ledger, folder)
        raise
    folder.log_event(status, run_id=folder.run_id)


def wait_for_turn(
    ledger: Ledger, folder: RunFolder, on_wait: OnWait | None = None
) -> None:
    """Waits until the run is admitted; whatever ends the wait takes it out.

    While it waits it admits those whose turn has come and lets time limits pass, so
    a queue needs nobody else to move.

    Args:
        ledger: The run's ledger.
        folder: The run's folder.
        on_wait: Called about twice a second with the run's row of the queue.

    Raises:
        BudgetError: A block was used up meanwhile: no waiting would help.
        KeyboardInterrupt: By SIGINT; the run has left the queue.
        SystemExit: By SIGTERM; the same.
    """
    run_id = folder.run_id
    clock = ReservationClock(ledger.queue, time.monotonic)
    try:
        with _exit_on_terminate():
            while ledger.queue.status(run_id) == "waiting":
                clock.tick()
                ledger.queue.admit()
                ledger.queue.check_possible(run_id)
                rows = ledger.queue.waiting(run_id)
                if not rows:
                    break
                if on_wait is not None:
                    on_wait(rows[0])
                time.sleep(_POLL_S)
    except BaseException:
        give_up(ledger, folder)
        raise
    ledger.queue.check_takeable(run_id)
    folder.log_event("reserved", run_id=run_id)


def give_up(ledger: Ledger, folder: RunFolder) -> None:
    """Takes a run back that will not be waited for, and its folder with it.

    When the ledger does not answer, nobody knows what the run holds: its folder stays,
    so that the next driver of the same plan continues it.
    """
    try:
        ledger.queue.give_up(folder.run_id)
    except PftError as error:
        folder.log_event("not_given_up", code=error.code)
        return
    folder.discard()


@contextmanager
def _exit_on_terminate() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that it leaves the queue as Ctrl-C does."""

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def with_advice(error: BudgetError, plan: Plan) -> BudgetError:
    """Returns the refusal with the largest epsilon, steps or batch that would fit."""
    fitting = largest_affordable(
        plan,
        epsilon=error.details["remaining_epsilon"],
        delta=error.details["remaining_delta"],
    )
    words = []
    if fitting["epsilon"] is not None:
        words.append(f"epsilon {fitting['epsilon']:g} at delta {fitting['delta']:g}")
    if fitting["num_steps"] is not None:
        words.append(f"{fitting['num_steps']} steps")
    if fitting["batch_size"] is not None:
        words.append(f"an expected batch of {fitting['batch_size']}")
    fix = "Create another budget with `pft budget create`."
    if words:
        fix = f"Would fit by itself: {', or '.join(words)}. Or: {fix}"
    details = error.details | {f"fits_{k}": v for k, v in fitting.items()}
    return BudgetError(error.message, fix, details)


def plan_document(built: BuiltJob) -> dict[str, Any]:
    """Returns the resolved job and plan as plan.json holds them; all public."""
    job = built.job.model_dump(mode="json")
    if job["ledger"]["url"] is not None:
        job["ledger"]["url"] = redacted(job["ledger"]["url"])
    return {
        "job": job,
        "base_dir": str(built.base_dir),
        "plan": built.plan.to_dict(),
        "plan_digest": built.plan.digest,
        "epsilon": built.epsilon,
        "envelopes": [part.to_dict() for part in built.parts],
    }
