"""Options that several verbs share, so that they are spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobArgument = Annotated[Path, typer.Argument(metavar="JOB", help="Job file (YAML).")]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="PFT_LEDGER_URL",
        help="Path or URL of the ledger; default: $PFT_HOME/ledger.db.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the job, for example privacy.epsilon=4; repeatable.",
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.")
]
