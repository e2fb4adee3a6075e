"""``pft train``: fine-tunes as a job file says, and shows how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.options import JobArgument, JsonOption, LedgerOption, SetOption
from pft_ray.cli.queue import WaitOption
from pft_ray.cli.train_display import Display
from pft_ray.errors import EXIT_BUDGET, EXIT_OTHER, InputError

if TYPE_CHECKING:
    from pft_ray.cluster.trainer import RunResult


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

        with Display(as_json=as_json) as display:
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
                result = trainer.fit(
                    address=address,
                    new=new,
                    resume=resume,
                    wait=wait,
                    on_event=display.tell,
                )
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


def _scaling(result: RunResult) -> dict[str, Any]:
    """Returns resizes and the number of decisions of an elastic run, else nothing."""
    from pft_ray.cluster.run_folder import EVENTS_FILE
    from pft_ray.cluster.scaling_story import read_story

    story = read_story(result.folder / EVENTS_FILE)
    if not story["scaling_decisions"]:
        return {}
    keys = ("step", "from", "to")
    return {
        "resizes": [{key: item[key] for key in keys} for item in story["resizes"]],
        "decisions": story["scaling_decisions"],
    }


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
                **_scaling(result),
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
