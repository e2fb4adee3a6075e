"""Moments and windows: one order, one place for each moment, kinds never mixed."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.data.windows import WindowSpec, moment_of
from pft_ray.errors import DataError
from pft_ray.ledger.windows import windows_apart

FIRST, LAST = (datetime.fromisoformat(f"{year}-01-01") for year in ("0002", "9998"))
TIMES = st.datetimes(FIRST, LAST)
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(one=TIMES, other=TIMES, zone=ZONES)
def test_times_sort_as_their_texts_do_whatever_their_offset(one, other, zone):
    moved = one.replace(tzinfo=UTC).astimezone(zone)
    assert moment_of(moved) == moment_of(one) == moment_of(moved.isoformat())
    assert (moment_of(one) < moment_of(other)) == (one < other)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (7, 7),
        ("7", 7),
        ("-12", -12),
        (date(2026, 1, 31), "2026-01-31T00:00:00.000000Z"),
        ("2026-01-31", "2026-01-31T00:00:00.000000Z"),
        ("2026-01-31T01:00:00+02:00", "2026-01-30T23:00:00.000000Z"),
        (True, None),
        (1.5, None),
        (None, None),
        ("", None),
        ("yesterday", None),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), None),
    ],
)
def test_moments_are_numbers_or_times_and_nothing_else(value, moment):
    assert moment_of(value) == moment


@given(
    ends=st.lists(st.integers(-50, 50), min_size=3, max_size=3, unique=True),
    moment=st.integers(-60, 60),
)
def test_windows_side_by_side_hold_a_moment_once(ends, moment):
    low, middle, high = sorted(ends)
    first = WindowSpec("day", low, middle)
    second = WindowSpec("day", middle, high)
    whole = WindowSpec("day", low, high)
    assert first.holds(moment) + second.holds(moment) == whole.holds(moment)
    assert windows_apart(first.cut(), second.cut())
    assert not windows_apart(first.cut(), whole.cut())


@given(
    one=st.tuples(TIMES, TIMES).filter(lambda t: t[0] < t[1]),
    other=st.tuples(TIMES, TIMES).filter(lambda t: t[0] < t[1]),
    moment=TIMES,
)
def test_windows_that_are_apart_share_no_moment(one, other, moment):
    windows = [WindowSpec("t", *(e.isoformat() for e in pair)) for pair in (one, other)]
    in_both = all(window.holds(moment_of(moment)) for window in windows)
    apart = windows_apart(*(window.cut() for window in windows))
    assert not (apart and in_both)
    assert apart == (one[1] <= other[0] or other[1] <= one[0])


def test_a_moment_of_another_kind_lies_in_no_window():
    assert not WindowSpec("t", 0, 10**15).holds("2026-01-01T00:00:00.000000Z")
    assert not WindowSpec("t", "2000-01-01", "2100-01-01").holds(5)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (5, 5),
        (6, 5),
        ("2026-01-02", "2026-01-01"),
        (1, "2026-01-01"),
        ("soon", "later"),
        (True, 4),
    ],
)
def test_windows_that_hold_nothing_are_refused(since, until):
    with pytest.raises(DataError, match="window"):
        WindowSpec("day", since, until)


@pytest.mark.parametrize(
    "other",
    [
        None,
        {},
        {"field": "other", "since": 10, "until": 20},
        {"field": "day", "since": 10},
        {"field": "day", "since": 20, "until": 10},
        {"field": "day", "since": "2026-01-01", "until": "2026-01-02"},
        {
            "field": "day",
            "since": "2026-01-01T00:00:00.000000Z",
            "until": "2026-02-01T00:00:00.000000Z",
        },
        {"field": "day", "since": True, "until": 20},
    ],
)
def test_what_is_no_window_of_the_same_column_and_kind_is_not_apart(other):
    mine = WindowSpec("day", 0, 5).cut()
    assert windows_apart(mine, WindowSpec("day", 5, 9).cut())
    assert not windows_apart(mine, other)
    assert not windows_apart(other, mine)
