"""Rows as columns of plain Python values, before anything about them is checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MAX_NAMES_SHOWN = 12


class _Unreadable:
    """Stands in for a stored value that cannot be read, such as text not in UTF-8."""

    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final = _Unreadable()


@dataclass(frozen=True)
class RawTable:
    """What was read from a file: the wanted columns and nothing judged.

    Attributes:
        source: Name of the file or folder, for messages.
        columns: Values by column, all of length ``num_rows``; None where absent,
            ``UNREADABLE`` where a stored text is not UTF-8.
        num_rows: Number of records.
        names: Every column that the file has.
        class_names: Names of classes by label column, where the file's schema
            stores numbers and declares names for them.
    """

    source: str
    columns: Mapping[str, list[Any]]
    num_rows: int
    names: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def check_columns(source: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuses a file that lacks a wanted column.

    Column names are the public structure of a file, so they may be printed.

    Raises:
        DataError: Names the column, the closest one there is, and some others.
    """
    known = list(names)
    for column in wanted:
        if column in known:
            continue
        close = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        shown = ", ".join(repr(name) for name in known[:_MAX_NAMES_SHOWN])
        more = " and others" if len(known) > _MAX_NAMES_SHOWN else ""
        raise DataError(
            f"{source} has no column {column!r}.",
            f"{hint}It has {shown or 'no columns'}{more}.",
            {"column": column, "columns": known},
        )


def check_rows(source: str, num_rows: int) -> None:
    """Refuses a table without rows.

    Raises:
        DataError: There is no record at all.
    """
    if num_rows == 0:
        raise DataError(f"{source} holds no records.", "Give a file with records.")
