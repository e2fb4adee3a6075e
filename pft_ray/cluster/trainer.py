"""The driver of a run: price, reserve, start workers, watch, finish, report."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.assurance.claims import ANCHOR_FILE, collect_claims
from pft_ray.cluster.actors import call, start_coordinator, stop_coordinator
from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.cluster.fit import FitOutcome, fit_workers
from pft_ray.cluster.inputs import check_inputs
from pft_ray.cluster.ledger_place import forget_place, hide_place, open_place
from pft_ray.cluster.local import check_placement, ray_cluster
from pft_ray.cluster.reservations import (
    NOT_TAKEN,
    check_budget,
    driver_ledger,
    plan_document,
    take_place,
    wait_for_turn,
)
from pft_ray.cluster.run_folder import (
    EVENTS_FILE,
    RunFolder,
    latest_checkpoint,
    new_run_id,
)
from pft_ray.cluster.run_nodes import check_live_regions, check_scaling, run_nodes
from pft_ray.cluster.summary import write_results
from pft_ray.config import BuiltJob, JobSpec, build_job, load_job
from pft_ray.errors import PftError, ResumeError
from pft_ray.ledger.home import keys_dir, ledger_location
from pft_ray.telemetry import EventTail
from pft_ray.training.loop import merge_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pft_ray.ledger import Ledger, WaitingRun

    OnEvent = Callable[[dict[str, Any]], None]

_POLL_S = 0.5


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        run_id: The run.
        folder: Its folder.
        status: completed, budget_exhausted, interrupted or failed (operator's word).
        report: The contents of report.json, None when nothing was released.
        resumed: Whether an earlier run was continued.
        signal: The signal that interrupted it, 0 when none did.
    """

    run_id: str
    folder: Path
    status: str
    report: dict[str, Any] | None
    resumed: bool
    signal: int = 0


@dataclass
class _Watch:
    """What the driver has seen of a run while it was under way."""

    status: dict[str, Any] = field(default_factory=dict)
    released: dict[int, int] = field(default_factory=dict)
    tail: EventTail | None = None

    def see(self, status: dict[str, Any]) -> None:
        self.status = status
        self.released = merge_released(self.released, status["released"])


class PrivateTrainer:
    """Fine-tunes a model privately as a job file says.

    Args:
        job: Path of a job file, or a checked job.
        base_dir: Folder that the job's relative paths start from; by default that
            of the job file, else the current one.
        overrides: ``section.key=value`` items.
        ledger: URL or path of the ledger; default: the job's, else PFT_HOME's.
        on_progress: Called about twice a second with the coordinator's status.
        on_wait: Called about twice a second while the run waits in the queue.

    Example:
        >>> from pft_ray import PrivateTrainer  # doctest: +SKIP
        >>> result = PrivateTrainer("jobs/quickstart.yaml").fit()  # doctest: +SKIP
    """

    coordinator_class: type[Coordinator] = Coordinator

    def __init__(
        self,
        job: str | Path | JobSpec,
        *,
        base_dir: str | Path | None = None,
        overrides: list[str] | None = None,
        ledger: str | None = None,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        on_wait: Callable[[WaitingRun], None] | None = None,
    ) -> None:
        if isinstance(job, JobSpec):
            spec, origin = job, Path(base_dir or ".")
        else:
            spec = load_job(job, overrides)
            origin = Path(base_dir) if base_dir else Path(job).parent
        self.built: BuiltJob = build_job(spec, origin.resolve())
        # What the caller names starts from the current folder, the job's from its own.
        named = ledger_location(ledger) if ledger else None
        self.ledger_url = named or ledger_location(spec.ledger.url, origin)
        self._on_progress = on_progress
        self._num_workers = spec.cluster.workers
        self._on_wait = on_wait
        self._on_event: OnEvent | None = None

    def fit(
        self,
        *,
        address: str | None = None,
        new: bool = False,
        resume: str | None = None,
        wait: bool = False,
        on_event: OnEvent | None = None,
    ) -> RunResult:
        """Runs the job to its end and returns the result.

        Args:
            address: Ray address; None takes the job's, else starts a local Ray.
            new: Start a new run even when an unfinished one could be resumed.
            resume: Run id to resume.
            wait: Wait in the ledger's queue until a new run can be reserved. Ray is
                started after that.
            on_event: Called with each line of the run's events.jsonl, about twice a
                second: what was reserved, charged, spent or refused. For the operator.

        Where the job tolerates absences, as many workers are started as nodes hold
        within ``placement_timeout_s``. Those who are absent are the last ranks.

        Raises:
            BudgetError: The plan does not fit the blocks; nothing was read.
            MustWaitError: Without ``wait``: the admission order lets others go first.
            LedgerBehindError: The ledger is older than a position seen elsewhere.
            PftError: What else stops it, typed.
        """
        job, self._on_event = self.built.job, on_event
        ledger = driver_ledger(self.ledger_url)
        ledger.require(collect_claims(self.built.output_dir))
        folder, resumed = self._choose_run(ledger, new=new, resume=resume)
        if not resumed and not wait:
            check_budget(ledger, self.built)
        check_scaling(self.built)
        check_inputs(job, self.built.base_dir, ledger)
        try:
            if wait and not resumed:
                folder.acquire()
                take_place(ledger, folder, self.built, wait=True)
                wait_for_turn(ledger, folder, self._on_wait)
            reserved = wait or resumed
            return self._start(
                ledger, folder, address, resumed=resumed, reserved=reserved
            )
        finally:
            folder.release()

    def _start(
        self,
        ledger: Ledger,
        folder: RunFolder,
        address: str | None,
        *,
        resumed: bool,
        reserved: bool,
    ) -> RunResult:
        """Finds or starts a cluster, reserves what is not reserved, and runs."""
        started = time.perf_counter()
        cluster = self.built.job.cluster
        num_cpus = cluster.most_workers * cluster.cpus_per_worker
        with (
            run_nodes(self.built, address or cluster.address) as where,
            ray_cluster(where, num_cpus=num_cpus),
        ):
            check_live_regions(self.built)
            if cluster.elastic is None:
                self._num_workers = check_placement(
                    cluster.workers,
                    cluster.cpus_per_worker,
                    cluster.placement_timeout_s,
                    num_missing=cluster.tolerate_missing,
                )
            folder.acquire()
            if not reserved:
                self._reserve(ledger, folder)
            if self._num_workers < cluster.workers:
                folder.log_event("short_roster", workers=self._num_workers)
            # Starting took a while: a time limit may have passed meanwhile.
            ledger.queue.check_takeable(folder.run_id)
            return self._drive(ledger, folder, started, resumed=resumed)

    def check(self) -> dict[str, Any]:
        """Checks job, budget and data as :meth:`fit` would, and reserves nothing.

        Returns:
            The public facts of the run that would start.
        """
        job, plan = self.built.job, self.built.plan
        ledger = driver_ledger(self.ledger_url)
        ledger.require(collect_claims(self.built.output_dir))
        _, resumed = self._choose_run(ledger, new=False, resume=None)
        if not resumed:
            check_budget(ledger, self.built)
        check_scaling(self.built)
        check_inputs(job, self.built.base_dir, ledger)
        return {
            "would_resume": resumed,
            "job": job.name,
            "epsilon": self.built.epsilon,
            "delta": plan.delta,
            "num_steps_planned": plan.num_steps,
            "num_steps_max": plan.num_steps_max,
            "noise_multiplier": plan.noise_multiplier,
            "plan_digest": plan.digest,
        }

    def _choose_run(
        self, ledger: Ledger, *, new: bool, resume: str | None
    ) -> tuple[RunFolder, bool]:
        """Returns the folder of the run to continue, or of a new one."""
        output = self.built.output_dir
        digest = self.built.plan.digest
        if resume is not None:
            status = ledger.run_status(resume)
            if status.status in ("waiting", "expired"):
                ledger.queue.check_takeable(resume)
            if status.plan_digest != digest or status.status in NOT_TAKEN:
                raise ResumeError(
                    f"The run {resume} has ended or was made under another plan.",
                    "Name an unfinished run of this job, or leave --resume out.",
                )
            return RunFolder(output / resume), True
        if not new:
            for status in reversed(ledger.runs()):
                path = output / status.run_id
                if (
                    status.plan_digest == digest
                    and status.status not in NOT_TAKEN
                    and (path / "plan.json").exists()
                ):
                    return RunFolder(path), True
        return RunFolder(output / new_run_id(self.built.job.name)), False

    def _reserve(self, ledger: Ledger, folder: RunFolder) -> None:
        folder.write_json("plan.json", plan_document(self.built))
        leave = ledger.observers.subscribe(folder.events)
        ledger.reserve(folder.run_id, self.built.plan, self.built.parts)
        leave()

    def _drive(
        self, ledger: Ledger, folder: RunFolder, started: float, *, resumed: bool
    ) -> RunResult:
        plan = self.built.plan
        status = ledger.run_status(folder.run_id)
        checkpoint = latest_checkpoint(folder, status.checkpoints, plan.digest)
        events = EventTail(folder.path / EVENTS_FILE, whole=not resumed)
        watch = _Watch(tail=events)
        folder.log_event("resumed" if resumed else "started")
        place = hide_place(self.ledger_url, keys_dir(), folder.run_id)
        config = CoordinatorConfig(
            place,
            str(keys_dir()),
            folder.run_id,
            str(self.built.output_dir / ANCHOR_FILE),
            str(folder.path / EVENTS_FILE),
            self.built.job.cluster.park_timeout_s,
        )
        actor = start_coordinator(config, self.coordinator_class)
        try:
            with _stop_on_signal(actor) as signals:
                outcome = self._watch_fit(actor, folder, checkpoint, watch)
            watch.see(call(actor, "status"))
            watch.released = merge_released(watch.released, outcome.released)
            # Results first: a run that is over cannot be taken up to write them.
            report = self._write(folder, outcome, watch, time.perf_counter() - started)
            self._end(actor, outcome, watch)
        finally:
            stop_coordinator(folder.run_id)
            forget_place(place)
        folder.log_event("ended", status=outcome.status)
        self._pass_on(watch)
        if outcome.error is not None:
            raise outcome.error
        return RunResult(
            folder.run_id,
            folder.path,
            outcome.status,
            report,
            resumed,
            signals[0] if signals else 0,
        )

    def _watch_fit(
        self, actor: Any, folder: RunFolder, checkpoint: Path | None, watch: _Watch
    ) -> FitOutcome:
        """Runs the workers in a thread and polls the coordinator meanwhile."""
        box: list[FitOutcome] = []
        thread = threading.Thread(
            target=lambda: box.append(
                fit_workers(self.built, folder, checkpoint, self._num_workers)
            ),
            daemon=True,
        )
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            try:
                status = call(actor, "status", timeout_s=_POLL_S)
            except PftError:
                continue  # it is restarting; the workers wait for it themselves
            watch.see(status)
            self._pass_on(watch)
            if self._on_progress is not None:
                self._on_progress(watch.status)
        if not box:
            return FitOutcome("died", None, "the worker group ended without a result")
        return box[0]

    def _pass_on(self, watch: _Watch) -> None:
        """Tells the caller what was appended to the run's events."""
        if self._on_event is not None and watch.tail is not None:
            for event in watch.tail.new():
                self._on_event(event)

    def _end(self, actor: Any, outcome: FitOutcome, watch: _Watch) -> None:
        """Writes the run's end; a failed run stays open so that it can be resumed."""
        # A group that died leaves the run open: the same command resumes it.
        died = outcome.status == "died"
        status = "interrupted" if died else outcome.status
        call(actor, "end_run", status, sum(watch.released.values()), died=died)

    def _write(
        self, folder: RunFolder, outcome: FitOutcome, watch: _Watch, elapsed_s: float
    ) -> dict[str, Any] | None:
        """Writes operator.json, and the report when a model was released."""
        ledger = open_place(self.ledger_url, str(keys_dir()))
        return write_results(
            self.built,
            ledger,
            folder,
            outcome,
            released=watch.released,
            elapsed_s=elapsed_s,
        )


@contextmanager
def _stop_on_signal(actor: Any) -> Iterator[list[int]]:
    """Turns SIGINT and SIGTERM into a request to finish, checkpoint and end."""
    seen: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(128 + number)
        actor.request_stop.remote()

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    earlier = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
