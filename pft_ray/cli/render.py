"""What every verb shares: one JSON object on stdout, or words; errors; exit codes."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from pft_ray.errors import PftError

_SHORT = 18
_UNLIMITED = 10_000

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


def print_table(columns: list[str], rows: Iterable[list[Any]]) -> None:
    """Prints a table of plain values; text is folded, never cut off.

    Away from a terminal nothing is folded, so that lines can be searched.
    """
    from rich.table import Table
    from rich.text import Text

    out = console()
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        longest = max([len(column), *(len(row[place]) for row in cells)])
        # Only long words give way when the terminal is narrow.
        table.add_column(column, overflow="fold", no_wrap=longest <= _SHORT)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    if not out.is_terminal:
        out.width = _UNLIMITED
    out.print(table)


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
