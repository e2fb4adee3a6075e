"""``pft budget``: create blocks, show what is left, read and verify the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import budget_allocate, budget_files, examples, render
from pft_ray.cli.filter_budget import (
    PurposeOption,
    created_words,
    filter_rows,
    left_words,
    mode_override,
    move,
    parse_purposes,
    rho_left,
    set_words,
    show_runs,
    used_parts,
    with_runs,
)
from pft_ray.cli.opening import open_ledger
from pft_ray.cli.options import JobArgument, JsonOption, LedgerOption, SetOption
from pft_ray.cli.queue import add_commands
from pft_ray.errors import InputError

_BAR = 16
_MAX_RUNS = 40

app = typer.Typer(
    help="Privacy budgets: create them, see what is left, prove that nothing is lost.",
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
    mode: Annotated[
        str | None,
        typer.Option(help="plan or filter; default: the job's privacy.accounting."),
    ] = None,
    purpose: PurposeOption = None,
    ledger: LedgerOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a job's data and create its blocks.

    Doing it twice changes nothing. A block never changes: for another budget on the
    same data, name other blocks in privacy.block and evaluation.block. Their losses
    then add up. With --mode filter the training block is divided by --purpose.
    """
    if runs is not None and (epsilon is not None or delta is not None):
        raise InputError(
            "--runs is given together with --epsilon and --delta.",
            "Give --runs, or --epsilon and --delta.",
        )
    from pft_ray.cluster.filter_budget import BudgetRequest
    from pft_ray.cluster.registration import create_blocks

    result = create_blocks(
        job,
        BudgetRequest(
            1 if runs is None else runs, epsilon, delta, parse_purposes(purpose or [])
        ),
        ledger=ledger,
        overrides=[*(set_ or []), *mode_override(mode)],
    )
    if as_json:
        render.print_json(result)
        return
    out = render.console()
    state = "registered" if result["registered"] else "was registered already"
    kind = "public" if result["public"] else "private"
    out.print(f"Data set {result['registration']} ({kind}): {state}.", markup=False)
    for block in result["blocks"]:
        if block.get("mode") == "filter":
            out.print(created_words(block), markup=False)
            continue
        made = "created" if block["created"] else "was there already"
        out.print(
            f"Block {block['name']}: {made}, epsilon {block['epsilon']:g}, "
            f"delta {block['delta']:g}; {block['epsilon_left']:g} left, "
            f"room for {block['runs_left']} runs of this job.",
            markup=False,
        )
    for line in set_words(result, mode):
        out.print(line, markup=False)
    out.print(f"Ledger: {result['ledger']}", markup=False)


@app.command(epilog=examples.SHOW)
def show(
    block: Annotated[
        str | None, typer.Argument(metavar="BLOCK", help="One block only.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the block's burn-down here (.svg, .png or .pdf)."),
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each block's budget: total, reserved, used, left; and its burn-down."""
    from pft_ray.assurance.burn_down import (
        burn_down,
        check_plot,
        measure_of,
        write_plot,
    )

    if plot is not None and block is None:
        raise InputError("--plot is given without a block.", "Name the block, too.")
    if plot is not None:
        check_plot(plot)
    opened = open_ledger(ledger)
    blocks = opened.blocks() if block is None else [opened.block_status(block)]
    rows = with_runs(opened, blocks)
    if block is not None:
        steps = burn_down(blocks[0], opened.runs())
        rows[0]["burn_down"] = [step.to_dict() for step in steps]
        rows[0]["burn_measure"], rows[0]["burn_whole"] = measure_of(blocks[0])
        if plot is not None:
            write_plot(plot, blocks[0], steps)
    if as_json:
        render.print_json({"blocks": rows})
        return
    if not rows:
        render.console().print("No blocks yet: pft budget create JOB.yaml --runs 10")
        return
    if block is not None:
        _show_one(rows[0])
        show_runs(rows[0])
        return
    render.print_table(
        ["block", "epsilon", "left", "delta left", "waiting", "burn-down"],
        [
            [
                row["name"],
                f"{row['epsilon']:g}",
                left_words(row),
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
    used_part, reserved_part = used_parts(row)
    used, reserved = round(_BAR * used_part), round(_BAR * reserved_part)
    bar: str = "#" * used + "+" * (reserved - used) + "." * (_BAR - reserved)
    return bar


def _show_one(row: dict[str, Any]) -> None:
    rows: list[tuple[str, Any]] = [
        ("block", row["name"]),
        ("data set", f"{row['dataset']} ({'public' if row['public'] else 'private'})"),
        ("part", ", ".join(f"{k} {v}" for k, v in row["predicate"].items())),
        ("unit", row["unit"]),
    ]
    if row["filter"]:
        rows.extend(filter_rows(row))
    else:
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
    _show_burn_down(row)


def _show_burn_down(row: dict[str, Any]) -> None:
    """Prints what was left of a block after each run."""
    if not row["burn_down"]:
        return
    render.print_table(
        ["after run", f"took {row['burn_measure']}", "left", ""],
        [
            [
                step["run_id"],
                f"{step['taken']:g}" + ("" if step["is_used"] else " (reserved)"),
                f"{step['left']:g}",
                "#" * round(_BAR * step["left"] / row["burn_whole"]),
            ]
            for step in row["burn_down"][-_MAX_RUNS:]
        ],
    )


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
    from pft_ray.ledger import KEY_FILE, Observers
    from pft_ray.ledger.home import events_file, keys_dir, ledger_location
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
    observers = Observers()
    observers.subscribe(events_file())
    result = verify_ledger(
        ledger_location(ledger), anchors, fingerprint_key=key, observers=observers
    )
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

    The run gets no step ever after. A run that was charged keeps its envelopes; on
    filter blocks it gives back what it was not charged.
    """
    opened = open_ledger(ledger)
    opened.release_reservation(run)
    status = opened.run_status(run)
    blocks = [opened.block_status(name) for name in dict.fromkeys(status.blocks)]
    if as_json:
        left = [
            {"name": b.name, "epsilon_left": b.remaining_epsilon}
            | ({} if b.filter is None else {"rho_units_left": rho_left(b)})
            for b in blocks
        ]
        render.print_json({"run_id": run, "blocks": left})
        return
    for block in blocks:
        render.console().print(
            f"Block {block.name}: {block.remaining_epsilon:g} left.", markup=False
        )


app.command(epilog=examples.ALLOCATE)(budget_allocate.allocate)
app.command(epilog=examples.EXPORT_LEDGER)(budget_files.export)
app.command("import-check", epilog=examples.IMPORT_CHECK)(budget_files.import_check)
app.command(epilog=examples.MOVE)(move)
add_commands(app)
