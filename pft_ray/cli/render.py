"""What every verb shares: one JSON object on stdout, or words; errors; exit codes."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from pft_ray.errors import PftError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Returns a rich console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Prints one JSON object on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_error(error: PftError, *, as_json: bool) -> None:
    """Prints what was found and what to change; as JSON on stdout when asked."""
    if as_json:
        print_json({"error": error.to_dict()})
        return
    out = console(stderr=True)
    out.print(f"error: {error.message}", style="bold red", markup=False)
    if error.fix:
        out.print(f"       {error.fix}", markup=False)
    for key, value in error.details.items():
        if isinstance(value, int | float | str):
            out.print(f"       {key}: {value}", markup=False)


def print_table(title: str, columns: Iterable[str], rows: Iterable[list[Any]]) -> None:
    """Prints a table of plain values."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console().print(table)


def print_facts(rows: Iterable[tuple[str, Any]]) -> None:
    """Prints names and values, aligned."""
    pairs = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in pairs), default=0)
    out = console()
    for name, value in pairs:
        out.print(f"{name:<{width}}  {value}", markup=False)


def quiet_stdout() -> int:
    """Sends whatever libraries and child processes print to stderr.

    Returns:
        A descriptor of the real stdout, for :func:`restore_stdout`.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    return saved


def restore_stdout(saved: int) -> None:
    """Gives stdout back."""
    sys.stdout.flush()
    os.dup2(saved, 1)
    os.close(saved)
