"""``pft train``: fine-tunes as a job file says, and shows how it goes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.options import JobArgument, JsonOption, LedgerOption, SetOption
from pft_ray.cli.queue import WaitLine, WaitOption, wait_words
from pft_ray.errors import EXIT_BUDGET, EXIT_OTHER, InputError

if TYPE_CHECKING:
    from pft_ray.cluster.trainer import PrivateTrainer, RunResult
    from pft_ray.ledger import WaitingRun


def train(
    job: JobArgument,
    address: Annotated[
        str | None, typer.Option(help="Ray address; default: a local Ray.")
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Do not resume an unfinished run.")
    ] = False,
    resume: Annotated[str | None, typer.Option(help="Run id to resume.")] = None,
    wait: WaitOption = False,
    set_: SetOption = None,
    ledger: LedgerOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, train nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model privately as a job file says.

    The newest unfinished run of the same plan is resumed; --new starts another.
    """
    from pft_ray.cli.extras import require_train

    require_train("train")
    _check_options(resume=resume, new=new, dry_run=dry_run, wait=wait)
    facts: dict[str, Any] = {}
    result: RunResult | None = None
    saved = render.quiet_stdout()
    try:
        from pft_ray.cluster.placement import check_placement_before
        from pft_ray.cluster.trainer import PrivateTrainer
        from pft_ray.ledger.home import ledger_location

        with _Display(as_json=as_json) as display:
            trainer = PrivateTrainer(
                job,
                overrides=set_ or [],
                ledger=None if ledger is None else ledger_location(ledger),
                on_progress=display.update,
                on_wait=display.wait,
            )
            cluster = trainer.built.job.cluster
            where = address or cluster.address
            if cluster.file is None or where is not None:
                check_placement_before(
                    cluster.most_workers, cluster.cpus_per_worker, where
                )
            if dry_run:
                facts = trainer.check()
            else:
                display.start(trainer)
                result = trainer.fit(address=address, new=new, resume=resume, wait=wait)
    finally:
        render.restore_stdout(saved)
    if result is None:
        _show_dry_run(facts, as_json=as_json)
        return
    _show(result, as_json=as_json)
    raise typer.Exit(exit_code(result))


def _check_options(*, resume: str | None, new: bool, dry_run: bool, wait: bool) -> None:
    if resume is not None and (new or dry_run):
        raise InputError(
            f"--resume and {'--new' if new else '--dry-run'} are given together.",
            "Give one of them.",
        )
    if wait and dry_run:
        raise InputError(
            "--wait and --dry-run are given together.",
            "A dry run reserves nothing, so it has nothing to wait for.",
        )


def exit_code(result: RunResult) -> int:
    """Returns the shell's exit code of a run."""
    if result.status == "budget_exhausted":
        return EXIT_BUDGET
    if result.status == "interrupted":
        return 128 + result.signal if result.signal else EXIT_OTHER
    return 0 if result.status == "completed" else EXIT_OTHER


def _show_dry_run(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.print_json(facts)
        return
    render.print_facts(facts.items())
    render.console().print("Everything checks; nothing was reserved or trained.")


def _show(result: RunResult, *, as_json: bool) -> None:
    from pft_ray.assurance.wording import round_up

    if as_json:
        render.print_json(
            {
                "run_id": result.run_id,
                "folder": str(result.folder),
                "status": result.status,
                "resumed": result.resumed,
                "report": result.report,
            }
        )
        return
    out = render.console()
    how = " (resumed)" if result.resumed else ""
    out.print(f"Run {result.run_id}{how}: {result.status}", markup=False)
    if result.report is None:
        out.print("Run the same command again to resume it.")
        return
    report = result.report
    rows: list[tuple[str, Any]] = [
        ("epsilon", round_up(report["epsilon"], 4)),
        ("delta", f"{report['delta']:g}"),
        ("unit", report["unit"]),
        ("scope", report["guarantee_scope"]),
    ]
    utility = report.get("utility")
    if utility:
        low, high = utility["interval"]
        rows.append(
            (
                utility["metric"],
                f"{utility['private']:.3f}  (noise interval {low:.3f} to {high:.3f})",
            )
        )
        rows.extend(
            (f"  {name.replace('_', '-')}", f"{utility[name]:.3f}")
            for name in ("trivial", "non_private")
            if utility.get(name) is not None
        )
    rows.append(("report", result.folder / "report.html"))
    render.print_facts(rows)


class _Display:
    """The operator's progress line: steps, epsilon, speed, time left."""

    def __init__(self, *, as_json: bool) -> None:
        self._enabled = not as_json and sys.stderr.isatty()
        self._wait_line = WaitLine(enabled=not as_json)
        self._progress: Any = None
        self._task: Any = None
        self._curve: list[tuple[int, float]] = []
        self._target = 0.0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, trainer: PrivateTrainer) -> None:
        """Says what is about to run and prepares the epsilon curve."""
        from pft_ray.assurance.wording import round_up
        from pft_ray.cluster.filter_jobs import curve_of

        plan = trainer.built.plan
        shown = round_up(trainer.built.epsilon, 4)
        out = render.console(stderr=True)
        out.print(
            f"{trainer.built.job.name}: epsilon {shown} at delta "
            f"{plan.delta:g}, T {plan.num_steps} + reserve {plan.fault_reserve}, "
            f"workers {trainer.built.job.cluster.workers}",
            markup=False,
        )
        self._target = trainer.built.epsilon
        if not self._enabled:
            return
        self._curve = curve_of(trainer.built)
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=out,
        )
        self._task = self._progress.add_task("starting Ray", total=plan.num_steps)
        self._progress.start()

    def wait(self, row: WaitingRun) -> None:
        """Shows where the run stands in the queue."""
        if self._progress is None:
            self._wait_line(row)
        else:
            self._progress.update(self._task, description=wait_words(row))

    def update(self, status: dict[str, Any]) -> None:
        """Shows the coordinator's status."""
        if self._progress is None:
            return
        step, charged = status["step"], status["num_steps_charged"]
        now = time.monotonic()
        if step > 0 and self._first is None:
            self._first = (now, step)
        words = [f"paid {charged}/{status['num_steps_max']}"]
        spent = self._epsilon_at(charged)
        words.append(f"epsilon {spent:.2f} now, {self._target:.2f} reserved")
        if self._first is not None and step > self._first[1]:
            speed = (step - self._first[1]) / (now - self._first[0])
            left_s = (status["num_steps"] - step) / speed
            words.append(f"{speed:.2f} steps/s, {left_s:.0f} s left")
        if status["attempts"] > 1:
            words.append(f"attempt {status['attempts']}")
        self._progress.update(self._task, completed=step, description=", ".join(words))

    def _epsilon_at(self, charged: int) -> float:
        """Epsilon of the steps so far, for information, from the prepared curve."""
        value = 0.0
        for steps, epsilon in self._curve:
            if steps <= charged:
                value = epsilon
        return value
