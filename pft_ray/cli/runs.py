"""``pft runs``, ``report``, ``predict`` and ``export``: what runs left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.errors import InputError

RunArgument = Annotated[Path, typer.Argument(help="Run folder, or run id in --runs.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def find_run(run: Path, runs_dir: Path) -> Path:
    """Returns the folder of a run given by path or id.

    Raises:
        InputError: There is none.
    """
    for folder in (run, runs_dir / run):
        if (folder / "plan.json").exists():
            return folder
    raise InputError(
        f"There is no run {str(run)!r}.",
        f"`pft runs --runs {runs_dir}` lists the runs there are.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        return data
    except FileNotFoundError:
        raise InputError(
            f"{path.parent.name} has no {path.name}.",
            "The run released nothing yet; run its job again to resume it.",
        ) from None
    except ValueError:
        raise InputError(f"{path} is not JSON.", "Restore the file.") from None


def runs(
    runs_dir: RunsOption = Path("runs"),
    ledger: Annotated[str | None, typer.Option(help="Ledger URL or path.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of the ledger and where their folders are."""
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location

    opened = Ledger.open(ledger_location(ledger), keys_dir=keys_dir(), create=False)
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
        "Runs", list(rows[0]), [[str(value) for value in row.values()] for row in rows]
    )


def report(
    run: RunArgument,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show a run's released report, or print where its page is."""
    folder = find_run(run, runs_dir)
    data = _read(folder / "report.json")
    if as_json:
        render.print_json(data)
        return
    utility = data.get("utility") or {}
    rows: list[tuple[str, Any]] = [
        ("run", data["run_id"]),
        ("epsilon", f"{data['epsilon']:.4g} (target {data['target_epsilon']})"),
        ("delta", f"{data['delta']:g}"),
        ("unit", f"{data['unit']}, {data['relation']}, {data['relation_domain']}"),
        ("scope", data["guarantee_scope"]),
        ("noise_multiplier", data["noise_multiplier"]),
        ("sample_rate", data["sample_rate"]),
        ("num_steps_max", data["num_steps_max"]),
    ]
    if utility:
        rows.append((utility["metric"], f"{utility['private']:.3f}"))
    rows.append(("page", folder / "report.html"))
    render.print_facts(rows)


def predict(
    run: RunArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts to classify or continue.")],
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Try the released model of a run on texts of your own."""
    from pft_ray.cli.extras import require_train

    require_train("predict")
    from pft_ray.cluster.released import predict_texts

    folder = find_run(run, runs_dir)
    results = predict_texts(folder, texts)
    if as_json:
        render.print_json({"predictions": results})
        return
    for result in results:
        render.console().print(
            f"{result['label']:<12} {result['probability']:.3f}  {result['text'][:60]}",
            markup=False,
        )


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into the base model.")
    ] = False,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Copy a run's adapter, or merge it into its base model."""
    from pft_ray.cli.extras import require_train

    require_train("export")
    from pft_ray.cluster.released import export_model

    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", "Name a new folder.")
    folder = find_run(run, runs_dir)
    files = export_model(folder, out, merge=merge)
    if as_json:
        render.print_json({"folder": str(out), "files": files})
        return
    render.console().print(f"Wrote {', '.join(files)} to {out}", markup=False)
