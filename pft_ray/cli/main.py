"""``pft``: the verbs. Heavy imports happen inside each verb, when it is used."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from pft_ray.cli import examples, render
from pft_ray.cli.budget import app as budget_app
from pft_ray.cli.plan import plan
from pft_ray.cli.profile import profile
from pft_ray.cli.runs import export, predict, report, runs
from pft_ray.cli.setup import doctor, init, schema
from pft_ray.cli.train import train
from pft_ray.errors import EXIT_OTHER, InputError, PftError

TRACEBACK_VARIABLE = "PFT_TRACEBACK"
# typer brings its own click, or uses the installed one; this is the class of either.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="pft",
    help="Fine-tune language models on sensitive text, privately, on Ray.",
    epilog=examples.MAIN,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(epilog=examples.PLAN)(plan)
app.command(epilog=examples.TRAIN)(train)
app.command(epilog=examples.PROFILE)(profile)
app.command(epilog=examples.REPORT)(report)
app.command()(runs)
app.command(epilog=examples.PREDICT)(predict)
app.command(epilog=examples.EXPORT)(export)
app.command(epilog=examples.INIT)(init)
app.command()(doctor)
app.command(epilog=examples.SCHEMA)(schema)
app.add_typer(budget_app, name="budget")


def _version(value: bool) -> None:
    if value:
        from pft_ray import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fine-tune language models on sensitive text, privately, on Ray."""


def run() -> None:
    """Entry point: runs a verb and turns errors into words and exit codes.

    Whatever is not typed is a defect here or in a library. Its message may quote a
    record, so only its kind and place are printed unless PFT_TRACEBACK is set.
    """
    as_json = "--json" in sys.argv
    try:
        code = typer.main.get_command(app)(prog_name="pft", standalone_mode=False)
    except PftError as error:
        render.print_error(error, as_json=as_json)
        code = error.exit_code
    except _UsageError as error:
        code = _show_usage(error, as_json=as_json)
    except BrokenPipeError:
        code = EXIT_OTHER
    except typer.Abort:
        code = 130
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        render.print_error(_unexpected(error), as_json=as_json)
        code = EXIT_OTHER
    sys.exit(code if isinstance(code, int) else 0)


def _show_usage(error: Any, *, as_json: bool) -> int:
    """Shows what is wrong with the options themselves."""
    path = error.ctx.command_path if error.ctx is not None else "pft"
    if as_json:
        message = error.format_message()
        render.print_error(InputError(message, f"See `{path} --help`."), as_json=True)
    else:
        error.show()
    return int(error.exit_code)


def _unexpected(error: Exception) -> PftError:
    if isinstance(error, OSError) and error.strerror:
        return PftError(
            f"{error.filename or 'A file'}: {error.strerror}.",
            "Check the path, its permissions and free space.",
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "pft_ray" in frame.filename] or frames
    place = own[-1].filename.rpartition("pft_ray")[2].lstrip("/\\")
    return PftError(
        f"An unexpected {type(error).__name__} in {place}, line {own[-1].lineno}.",
        f"This is a defect of pft_ray. Set {TRACEBACK_VARIABLE}=1 to see all of it; "
        "it may then quote private text.",
    )
