"""``pft budget``: create blocks, show what is left, read and verify the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import examples, render
from pft_ray.cli.options import JobArgument, JsonOption, LedgerOption, SetOption
from pft_ray.cli.queue import add_commands, open_ledger
from pft_ray.errors import InputError

_BAR = 16

app = typer.Typer(
    help="Privacy budgets: create, show, history, verify, reserve, release, queue.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog=examples.CREATE)
def create(
    job: JobArgument,
    runs: Annotated[
        int | None,
        typer.Option(help="Runs of this job that the budget allows; default 1."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Budget of each block, in place of --runs.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Delta with --epsilon.")] = None,
    ledger: LedgerOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a job's data and create its blocks.

    Doing it twice changes nothing. A block never changes: for another budget on the
    same data, name other blocks in privacy.block and evaluation.block. Their losses
    then add up.
    """
    if runs is not None and (epsilon is not None or delta is not None):
        raise InputError(
            "--runs is given together with --epsilon and --delta.",
            "Give --runs, or --epsilon and --delta.",
        )
    from pft_ray.cluster.registration import create_budget

    result = create_budget(
        job,
        runs=1 if runs is None else runs,
        epsilon=epsilon,
        delta=delta,
        ledger=ledger,
        overrides=set_,
    )
    if as_json:
        render.print_json(result)
        return
    out = render.console()
    state = "registered" if result["registered"] else "was registered already"
    kind = "public" if result["public"] else "private"
    out.print(f"Data set {result['registration']} ({kind}): {state}.", markup=False)
    for block in result["blocks"]:
        made = "created" if block["created"] else "was there already"
        out.print(
            f"Block {block['name']}: {made}, epsilon {block['epsilon']:g}, "
            f"delta {block['delta']:g}; {block['epsilon_left']:g} left, "
            f"room for {block['runs_left']} runs of this job.",
            markup=False,
        )
    out.print(f"Ledger: {result['ledger']}", markup=False)


@app.command(epilog=examples.SHOW)
def show(
    block: Annotated[
        str | None, typer.Argument(metavar="BLOCK", help="One block only.")
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each block's budget: total, reserved, used, left."""
    opened = open_ledger(ledger)
    blocks = opened.blocks() if block is None else [opened.block_status(block)]
    rows = [status.to_dict() for status in blocks]
    if as_json:
        render.print_json({"blocks": rows})
        return
    if not rows:
        render.console().print("No blocks yet: pft budget create JOB.yaml --runs 10")
        return
    if block is not None:
        _show_one(rows[0])
        return
    render.print_table(
        ["block", "epsilon", "left", "delta left", "waiting", "burn-down"],
        [
            [
                row["name"],
                f"{row['epsilon']:g}",
                f"{row['remaining_epsilon']:g}",
                f"{row['remaining_delta']:g}",
                row["num_waiting"],
                _bar(row),
            ]
            for row in rows
        ],
    )
    render.console().print("# used by runs, + reserved and not used, . left")


def _bar(row: dict[str, Any]) -> str:
    """Draws a block's epsilon: used, reserved and not used, left."""
    used = round(_BAR * row["used_epsilon"] / row["epsilon"])
    reserved = round(_BAR * row["reserved_epsilon"] / row["epsilon"])
    bar: str = "#" * used + "+" * (reserved - used) + "." * (_BAR - reserved)
    return bar


def _show_one(row: dict[str, Any]) -> None:
    rows: list[tuple[str, Any]] = [
        ("block", row["name"]),
        ("data set", f"{row['dataset']} ({'public' if row['public'] else 'private'})"),
        ("part", ", ".join(f"{k} {v}" for k, v in row["predicate"].items())),
        ("unit", row["unit"]),
    ]
    rows.extend(
        (
            name,
            f"{row[name]:g}: reserved {row[f'reserved_{name}']:g}, used "
            f"{row[f'used_{name}']:g}, left {row[f'remaining_{name}']:g}",
        )
        for name in ("epsilon", "delta")
    )
    rows.append(("runs", row["num_reservations"]))
    if row["num_waiting"]:
        rows.append(("waiting", row["num_waiting"]))
    if row["overlapping"]:
        rows.append(("overlaps", ", ".join(row["overlapping"]) + " (losses add up)"))
    if row["num_non_private"]:
        rows.append(("non-private runs", row["num_non_private"]))
    render.print_facts([*rows, ("burn-down", _bar(row))])


@app.command(epilog=examples.HISTORY)
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
    rows = open_ledger(ledger).history(limit=limit, block=block, run_id=run)
    if as_json:
        render.print_json({"entries": [row.to_dict() for row in rows]})
        return
    render.print_table(
        ["row", "kind", "what"],
        [[row.sequence, row.kind, _summary(row)] for row in rows],
    )


def _summary(row: Any) -> str:
    """Returns a row's short fields; integer budgets as the numbers they stand for."""
    from pft_ray.ledger.budget import delta_value, epsilon_value

    words: str = row.summary()
    for name, value_of in (("epsilon", epsilon_value), ("delta", delta_value)):
        units = row.body.get(f"{name}_units")
        if units is not None:
            words = words.replace(
                f"{name}_units {units}", f"{name} {value_of(units):g}"
            )
    return words


@app.command(epilog=examples.VERIFY)
def verify(
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder of runs: their reports and checkpoints are anchors."),
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the whole ledger from its raw rows.

    Each run's epsilon is computed anew from what the ledger holds.
    A damaged or shortened ledger ends with exit code 4 and names the row or page.
    """
    from pft_ray.assurance.claims import check_reports, collect_claims
    from pft_ray.crypto import load_or_create_key
    from pft_ray.ledger import KEY_FILE
    from pft_ray.ledger.home import keys_dir, ledger_location
    from pft_ray.ledger.verify import verify as verify_ledger

    if runs is not None and not runs.is_dir():
        raise InputError(
            f"There is no folder of runs {str(runs)!r}.",
            "Name the folder that the job's output names, or leave --runs out.",
        )
    folder = runs if runs is not None else Path("runs")
    anchors = collect_claims(folder)
    key_file = keys_dir() / KEY_FILE
    key = load_or_create_key(key_file) if key_file.exists() else None
    result = verify_ledger(ledger_location(ledger), anchors, fingerprint_key=key)
    num_reports = check_reports(folder, result)
    if as_json:
        checked = {
            "fingerprints_checked": key is not None,
            "num_reports_checked": num_reports,
        }
        render.print_json(result.to_dict() | checked)
        return
    out = render.console()
    out.print(f"{result.num_entries} rows, root {result.root[:16]}…", markup=False)
    for run in result.runs:
        out.print(
            f"run {run.run_id}: {run.num_steps_charged} of {run.num_steps_max} steps "
            f"paid, epsilon {run.epsilon:.4f} within its envelope {run.envelope:g}",
            markup=False,
        )
    if key is None:
        out.print("Fingerprints of data sets: not checked, their key is not here.")
    if num_reports:
        out.print(f"Reports that state what the events give: {num_reports}.")
    out.print(result.words, markup=False)


@app.command(epilog=examples.RELEASE)
def release(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run whose reservation to give back.")
    ],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a run's reservation back while nothing of it was charged.

    The run gets no step ever after. A run that was charged keeps its envelopes.
    """
    opened = open_ledger(ledger)
    opened.release_reservation(run)
    envelopes = opened.run_status(run).envelopes
    blocks = [opened.block_status(envelope.block) for envelope in envelopes]
    if as_json:
        left = [{"name": b.name, "epsilon_left": b.remaining_epsilon} for b in blocks]
        render.print_json({"run_id": run, "blocks": left})
        return
    for block in blocks:
        render.console().print(
            f"Block {block.name}: {block.remaining_epsilon:g} left.", markup=False
        )


add_commands(app)
