"""``pft``: the verbs. Heavy imports happen inside each verb, when it is used."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pft_ray.cli import render
from pft_ray.cli.budget import app as budget_app
from pft_ray.cli.plan import plan
from pft_ray.cli.runs import export, predict, report, runs
from pft_ray.cli.setup import doctor, init, schema
from pft_ray.cli.train import train
from pft_ray.errors import EXIT_OTHER, PftError

app = typer.Typer(
    name="pft",
    help="Fine-tune language models on sensitive text, privately, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(plan)
app.command()(train)
app.command()(report)
app.command()(runs)
app.command()(predict)
app.command()(export)
app.command()(init)
app.command()(doctor)
app.command()(schema)
app.add_typer(budget_app, name="budget")


def _version(value: bool) -> None:
    if value:
        from pft_ray import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune language models on sensitive text, privately, on Ray."""


def run() -> None:
    """Entry point: runs a verb and turns typed errors into exit codes."""
    try:
        app()
    except PftError as error:
        render.print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(EXIT_OTHER)
