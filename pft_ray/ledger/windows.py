"""Blocks of time windows: when no record can be in two of them.

The part ``window`` of a block's predicate names the column of the moment and the
half-open range [since, until): two whole numbers, or two times of one written form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pft_ray.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FIELDS = {"field", "since", "until"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def windows_apart(window: Any, other: Any) -> bool:
    """Whether no record can be in both windows.

    Guarantee:
        Both are decided by the same column of the record, and one ends where the other
        starts, or before. A record has one moment, so it is in one of them at most. It
        does not hold for users: their records have many.
    """
    if not _is_window(window) or not _is_window(other):
        return False
    if window["field"] != other["field"]:
        return False
    if type(window["since"]) is not type(other["since"]):
        return False
    return bool(window["until"] <= other["since"] or other["until"] <= window["since"])


def check_window(
    block: str, predicate: Mapping[str, Any], namespaces: Collection[str]
) -> None:
    """Refuses a block of a window that the registration does not hold to.

    Guarantee:
        The registration of a block of a window commits to each record together with
        its moment: a record cannot be moved to another window after the first one's
        block was charged.

    Raises:
        InputError: The window cannot be read, or the registration does not commit.
    """
    window = predicate.get("window")
    if window is None:
        return
    if not _is_window(window):
        raise InputError(
            f"The window of block {block!r} cannot be read.",
            'Give {"field", "since", "until"}: two whole numbers, or two times in UTC '
            "with microseconds.",
        )
    if f"window:{window['field']}" not in namespaces:
        raise InputError(
            f"The data of block {block!r} were registered without the moments of "
            f"column {window['field']!r}.",
            "Columns that cut blocks are fixed when data are first registered: cut "
            "blocks without this window.",
            {"block": block},
        )


def _is_window(window: Any) -> bool:
    if not isinstance(window, dict) or set(window) != _FIELDS:
        return False
    ends = [window["since"], window["until"]]
    if not isinstance(window["field"], str) or not window["field"]:
        return False
    numbers = all(type(end) is int for end in ends)
    times = all(isinstance(end, str) and _TIME.fullmatch(end) for end in ends)
    return bool((numbers or times) and ends[0] < ends[1])
