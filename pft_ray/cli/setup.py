"""``pft init``, ``pft doctor`` and ``pft schema``: before the first run."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from pft_ray.cli import render
from pft_ray.cli.options import JsonOption, LedgerOption
from pft_ray.errors import EXIT_OTHER, InputError

_WARNING = (
    "The values below were read off the data. Writing them down makes them public: "
    "check sizes, labels and lengths, and round or change what must not be known."
)


def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Data file or folder to look at.")
    ],
    out: Annotated[Path, typer.Option(help="Job file to write.")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a data file and propose a job file for it."""
    import yaml

    from pft_ray.data.propose import propose_job

    if out.is_dir():
        raise InputError(f"{out} is a folder.", "Name a file in it with --out.")
    if out.exists() and not force:
        raise InputError(f"{out} exists.", "Name another with --out, or use --force.")
    job = propose_job(data)
    job["data"]["path"] = _from_job(data, out)
    header = "".join(f"# {line}\n" for line in textwrap.wrap(_WARNING, 78))
    try:
        out.write_text(header + yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror}.", "Name another with --out."
        ) from None
    if as_json:
        render.print_json({"job_file": str(out), "job": job, "warning": _WARNING})
        return
    render.console().print(f"Wrote {out}. {_WARNING}", markup=False)
    render.console().print(
        f"Next: pft plan {out}; pft budget create {out} --runs 1; pft train {out}",
        markup=False,
    )


def _from_job(data: Path, out: Path) -> str:
    """Returns the data's path as the job file has to name it."""
    return str(data) if data.is_absolute() else os.path.relpath(data, out.parent)


def doctor(
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, disk, shared memory, ledger, keys."""
    from pft_ray.cli.doctor import examine

    findings = examine(ledger)
    failed = [f for f in findings if f.level == "fail"]
    if as_json:
        render.print_json(
            {"ok": not failed, "findings": [finding.to_dict() for finding in findings]}
        )
    else:
        render.print_table(
            ["", "what", "found", "change"],
            [[f.level, f.name, f.found, f.fix] for f in findings],
        )
    if failed:
        raise typer.Exit(EXIT_OTHER)


def schema(
    as_json: JsonOption = False,  # noqa: ARG001 - every verb takes --json
) -> None:
    """Print the JSON schema of a job file, for editors."""
    from pft_ray.config import job_schema

    render.print_json(job_schema())
