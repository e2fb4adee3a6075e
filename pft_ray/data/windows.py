"""Time windows: which records a block holds, by a moment of each record's own.

A moment is a whole number (of whatever the file counts) or a time. A text of digits is
a number. Times are read from other ISO 8601 texts and from date and time columns; one
without an offset is in UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from pft_ray.errors import DataError

Moment = int | str
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def moment_of(value: Any) -> Moment | None:
    """Returns a value as a moment: a whole number, or a time in its one written form.

    Times in that form sort as the times do. None when the value is neither.
    """
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value)
    return _time_of(value)


def _time_of(value: Any) -> str | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        return None
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    try:
        moved = aware.astimezone(UTC)
    except OverflowError:
        return None
    return moved.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class WindowSpec:
    """Records whose moment lies in [since, until). All public.

    Attributes:
        field: Column of the moment.
        since: First moment inside: a whole number or a time (ISO 8601).
        until: First moment after it.
    """

    field: str
    since: Moment
    until: Moment

    def __post_init__(self) -> None:
        ends = moment_of(self.since), moment_of(self.until)
        since, until = ends
        if since is None or until is None or type(since) is not type(until):
            raise DataError(
                f"The window is from {self.since!r} until {self.until!r}.",
                "Give two whole numbers, or two times such as 2026-01-31 or "
                "2026-01-31T12:00:00+01:00.",
            )
        if not _is_before(since, until):
            raise DataError(
                f"The window ends at {self.until!r}, not after {self.since!r}.",
                "Give an end after the start; the end itself is outside.",
            )
        object.__setattr__(self, "since", since)
        object.__setattr__(self, "until", until)

    def holds(self, moment: Moment) -> bool:
        """Whether a moment of the same kind lies inside; one of another kind does not.

        Guarantee:
            A moment lies in at most one of two windows of which one ends where the
            other starts, or before.
        """
        if type(moment) is not type(self.since):
            return False
        return not _is_before(moment, self.since) and _is_before(moment, self.until)

    def cut(self) -> dict[str, Any]:
        """Returns the window as the predicate of a block has it."""
        return {"field": self.field, "since": self.since, "until": self.until}


def _is_before(one: Moment, other: Moment) -> bool:
    """Compares two moments of one kind."""
    if isinstance(one, int) and isinstance(other, int):
        return one < other
    return str(one) < str(other)
