"""``pft budget``: create blocks, show what is left, read and verify the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.errors import InputError

app = typer.Typer(
    help="Privacy budgets: create, show, history, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LedgerOption = Annotated[str | None, typer.Option("--ledger", help="URL or path.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _open(url: str | None, *, create: bool = False) -> Any:
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location

    return Ledger.open(ledger_location(url), keys_dir=keys_dir(), create=create)


@app.command()
def create(
    job: Annotated[Path, typer.Argument(help="Job file whose blocks to create.")],
    runs: Annotated[
        int, typer.Option(help="Runs of this job that the budget shall allow.")
    ] = 1,
    epsilon: Annotated[
        float | None, typer.Option(help="Budget of each block, in place of --runs.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Delta with --epsilon.")] = None,
    ledger: LedgerOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Register a job's data and create its blocks; doing it twice changes nothing."""
    from pft_ray.cli.extras import require_train

    require_train("budget create")
    from pft_ray.cluster.registration import create_budget

    result = create_budget(
        job, runs=runs, epsilon=epsilon, delta=delta, ledger=ledger, overrides=set_
    )
    if as_json:
        render.print_json(result)
        return
    state = "registered" if result["registered"] else "was registered already"
    render.console().print(f"Data set {result['registration']}: {state}.")
    for block in result["blocks"]:
        made = "created" if block["created"] else "was there already"
        render.console().print(
            f"Block {block['name']}: {made}, epsilon {block['epsilon']:g}, "
            f"delta {block['delta']:g}, {block['epsilon_left']:g} left."
        )


@app.command()
def show(
    block: Annotated[str | None, typer.Argument(help="One block only.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each block's budget: total, reserved, left."""
    opened = _open(ledger)
    blocks = opened.blocks() if block is None else [opened.block_status(block)]
    rows = [status.to_dict() for status in blocks]
    if as_json:
        render.print_json({"blocks": rows})
        return
    if not rows:
        render.console().print("No blocks yet: pft budget create JOB.yaml --runs 10")
        return
    table = []
    for row in rows:
        share = row["reserved_epsilon"] / row["epsilon"]
        filled = round(20 * share)
        table.append(
            [
                row["name"],
                row["unit"],
                f"{row['epsilon']:g}",
                f"{row['reserved_epsilon']:g}",
                f"{row['remaining_epsilon']:g}",
                f"{row['remaining_delta']:g}",
                "#" * filled + "." * (20 - filled),
            ]
        )
    render.print_table(
        "Privacy budget",
        ["block", "unit", "epsilon", "reserved", "left", "delta left", "burn-down"],
        table,
    )


@app.command()
def history(
    block: Annotated[str | None, typer.Option(help="One block only.")] = None,
    run: Annotated[str | None, typer.Option(help="One run only.")] = None,
    limit: Annotated[int, typer.Option(help="Newest rows to print.")] = 50,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the newest rows of the ledger."""
    if limit < 1:
        raise InputError(f"--limit is {limit}.", "Give at least 1.")
    rows = _open(ledger).history(limit=limit, block=block, run_id=run)
    if as_json:
        render.print_json({"entries": [row.to_dict() for row in rows]})
        return
    render.print_table(
        "Ledger",
        ["seq", "kind", "what"],
        [[row.sequence, row.kind, row.summary()] for row in rows],
    )


@app.command()
def verify(
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder of runs: their reports and checkpoints are anchors."),
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the whole ledger and re-derive each run's epsilon from it alone."""
    from pft_ray.assurance.claims import collect_claims
    from pft_ray.ledger.home import ledger_location
    from pft_ray.ledger.verify import verify as verify_ledger

    anchors = collect_claims(runs if runs is not None else Path("runs"))
    result = verify_ledger(ledger_location(ledger), anchors)
    if as_json:
        render.print_json(result.to_dict())
        return
    out = render.console()
    out.print(f"{result.num_entries} rows, root {result.root[:16]}…", markup=False)
    for run in result.runs:
        out.print(
            f"run {run.run_id}: {run.num_steps_charged} of {run.num_steps_max} steps "
            f"paid, epsilon {run.epsilon:.4f} within its envelope {run.envelope:g}",
            markup=False,
        )
    out.print(result.words, markup=False)
