"""``pft runs``, ``report``, ``predict`` and ``export``: what runs left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.opening import open_ledger
from pft_ray.cli.options import JsonOption, LedgerOption, RunsOption
from pft_ray.errors import InputError

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run id, or path of a run folder.")
]
_STANDARD_INPUT = "-"


def find_run(run: str, runs_dir: Path) -> Path:
    """Returns the folder of a run given by path or id.

    Raises:
        InputError: There is none.
    """
    for folder in (runs_dir / run, Path(run)):
        if run and (folder / "plan.json").exists():
            return folder
    raise InputError(
        f"There is no run {run!r} in {str(runs_dir)!r}.",
        "`pft runs` lists the runs there are; --runs names the folder they are in.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path.parent.name} has no {path.name}.",
            "The run released nothing yet; run its job again to resume it.",
        ) from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a JSON object.", "Restore the file.")
    return data


def runs(
    runs_dir: RunsOption = Path("runs"),
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of the ledger and where their folders are. For the operator."""
    opened = open_ledger(ledger)
    rows = [
        {
            "run_id": run.run_id,
            "status": run.status,
            "num_steps_charged": run.num_steps_charged,
            "num_steps_max": run.num_steps_max,
            "attempts": run.num_attempts,
            "folder": str(runs_dir / run.run_id)
            if (runs_dir / run.run_id).exists()
            else None,
        }
        for run in opened.runs()
    ]
    if as_json:
        render.print_json({"runs": rows})
        return
    if not rows:
        render.console().print("No runs yet: pft train JOB.yaml")
        return
    render.print_table(
        ["run", "status", "steps paid", "attempts", "folder"],
        [
            [
                row["run_id"],
                row["status"],
                f"{row['num_steps_charged']}/{row['num_steps_max']}",
                row["attempts"],
                row["folder"] or "elsewhere",
            ]
            for row in rows
        ],
    )


def report(
    run: RunArgument,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show a run's released report and where its page is."""
    path = find_run(run, runs_dir) / "report.json"
    data = _read(path)
    if as_json:
        render.print_json(data)
        return
    try:
        rows = _report_rows(data)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} lacks fields of a report.", "Restore the file."
        ) from None
    render.print_facts([*rows, ("page", path.with_name("report.html"))])


def _report_rows(data: dict[str, Any]) -> list[tuple[str, Any]]:
    from pft_ray.assurance.wording import round_up

    target = data["target_epsilon"]
    asked = f" (target {target:g})" if target is not None else ""
    rows: list[tuple[str, Any]] = [
        ("run", data["run_id"]),
        ("epsilon", f"{round_up(data['epsilon'], 4)}{asked}"),
        ("delta", f"{data['delta']:g}"),
        ("unit", f"{data['unit']}, {data['relation']}, {data['relation_domain']}"),
        ("scope", data["guarantee_scope"]),
        ("noise multiplier", f"{data['noise_multiplier']:g}"),
        ("sample rate", f"{data['sample_rate']:g}"),
        ("steps at most", data["num_steps_max"]),
    ]
    utility = data.get("utility")
    if utility:
        rows.append((utility["metric"], f"{utility['private']:.3f}"))
    return rows


def predict(
    run: RunArgument,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to classify.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="One text a line; - reads stdin.")
    ] = None,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Classify texts of your own with the released model of a run.

    Texts on a command line can be seen by others on the machine: use --file for
    sensitive ones.
    """
    from pft_ray.cli.extras import require_train

    require_train("predict")
    folder = find_run(run, runs_dir)
    wanted = _texts(texts or [], file)
    saved = render.quiet_stdout()
    try:
        from pft_ray.cluster.released import predict_texts

        results = predict_texts(folder, wanted)
    finally:
        render.restore_stdout(saved)
    if as_json:
        render.print_json({"predictions": results})
        return
    for result in results:
        render.console().print(
            f"{result['label']:<12} {result['probability']:.3f}  {result['text'][:60]}",
            markup=False,
        )


def _texts(texts: list[str], file: str | None) -> list[str]:
    if (not texts) == (file is None):
        raise InputError(
            "Texts and --file are given together."
            if texts
            else "There is no text to classify.",
            "Give texts after the run, or --file with one text a line.",
        )
    if file is None:
        return texts
    try:
        raw = (
            sys.stdin.buffer.read()
            if file == _STANDARD_INPUT
            else Path(file).read_bytes()
        )
        lines = raw.decode().splitlines()
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}.", "Check the path."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"{file} holds no text.", "Write one text a line.")
    return found


def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; new or empty.")
    ],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into the base model.")
    ] = False,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Copy a run's adapter, or merge it into its base model."""
    from pft_ray.cli.extras import require_train

    require_train("export")
    folder = find_run(run, runs_dir)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file.", "Name a new folder.")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", "Name a new folder.")
    saved = render.quiet_stdout()
    try:
        from pft_ray.cluster.released import export_model

        files = export_model(folder, out, merge=merge)
    finally:
        render.restore_stdout(saved)
    if as_json:
        render.print_json({"folder": str(out), "files": files})
        return
    render.console().print(f"Wrote {', '.join(files)} to {out}", markup=False)
