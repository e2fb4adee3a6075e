"""The check before every reduction: who may take part, and with which noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import ShareHeader, assign_shares, check_headers, header_length

DIGEST = "ab" * 32


def header(shares, **change):
    fields = {
        "attempt": 1,
        "step": 7,
        "phase": 0,
        "clip_norm": 1.0,
        "plan_digest": DIGEST,
    }
    return ShareHeader(**{**fields, **change}, shares=tuple(shares))


def check(headers, denominator):
    packed = [item.pack(denominator) for item in headers]
    for own in packed:
        check_headers(packed, own, denominator)


@given(num_shares=st.integers(1, 12), num_workers=st.integers(1, 12))
def test_every_share_has_one_rank(num_shares, num_workers):
    parts = [assign_shares(num_shares, num_workers, r) for r in range(num_workers)]
    assert sorted(pair for part in parts for pair in part) == [
        (index, 1) for index in range(num_shares)
    ]
    if num_workers <= num_shares:
        check([header(part) for part in parts], num_shares)
        return
    with pytest.raises(VoidStepError, match="no noise share"):
        check([header(part) for part in parts], num_shares)


def test_five_shares_over_two_ranks():
    check([header([(0, 1), (2, 1), (4, 1)]), header([(1, 1), (3, 1)])], 5)


def test_a_rank_without_a_share_is_void():
    """What it sends would carry no noise of its own."""
    with pytest.raises(VoidStepError, match="no noise share"):
        check([header([(0, 1)]), header([])], 1)


def test_surplus_noise_is_accepted():
    check([header([(0, 2)]), header([(1, 2)])], 3)


def test_a_roster_of_three_in_a_collective_of_two_is_void():
    with pytest.raises(VoidStepError, match="2/3"):
        check([header([(0, 1)]), header([(1, 1)])], 3)


def test_a_share_that_appears_twice_is_void():
    with pytest.raises(VoidStepError, match="repeated"):
        check([header([(0, 1), (1, 1)]), header([(1, 1)])], 2)
    with pytest.raises(VoidStepError, match="repeated"):
        check([header([(0, 1), (0, 1)])], 2)


@pytest.mark.parametrize("pair", [(3, 1), (-1, 1), (0, 0), (0, -3)])
def test_unknown_shares_are_void(pair):
    with pytest.raises(VoidStepError):
        check([header([pair, (1, 1), (2, 1)])], 3)


def test_a_negative_numerator_cannot_hide_behind_a_large_one():
    with pytest.raises(VoidStepError):
        check([header([(0, 5), (1, -2)])], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 2},
        {"step": 8},
        {"phase": 1},
        {"clip_norm": 0.9999999999999999},
        {"plan_digest": "ab" * 31 + "ac"},
        {"plan_digest": "bb" + "ab" * 31},
    ],
)
def test_ranks_at_different_places_are_void(change):
    with pytest.raises(VoidStepError, match="another"):
        check([header([(0, 1)]), header([(1, 1)], **change)], 2)


def test_every_rank_reaches_the_same_verdict():
    """No rank may apply a step that another calls void."""
    packed = [header([(0, 1)]).pack(2), header([(1, 1)], step=8).pack(2)]
    for own in packed:
        with pytest.raises(VoidStepError):
            check_headers(packed, own, 2)


def test_a_rank_that_is_not_in_the_collective_is_void():
    """Its noise would be missing from a sum whose check it has passed."""
    packed = [header([(0, 1)]).pack(2), header([(1, 1)]).pack(2)]
    stranger = header([]).pack(2)
    with pytest.raises(VoidStepError, match="own header"):
        check_headers(packed, stranger, 2)
    with pytest.raises(VoidStepError, match="own header"):
        check_headers([], packed[0], 2)


@pytest.mark.parametrize("count", [-1, 3, 2**40])
def test_a_damaged_count_is_void(count):
    words = header([(0, 1), (1, 1)]).pack(2)
    words[8] = count
    with pytest.raises(VoidStepError, match="malformed"):
        check_headers([words], words, 2)


def test_a_short_header_is_void():
    words = header([(0, 1)]).pack(1)
    for length in (8, 10):
        cut = words[:length].copy()
        with pytest.raises(VoidStepError, match="malformed"):
            check_headers([cut], cut, 1)


def test_packing():
    words = header([(4, 1), (0, 2)], attempt=3, step=9, phase=1).pack(5)
    assert words.dtype == np.int64
    assert words.shape == (header_length(5),)
    assert words[:3].tolist() == [3, 9, 1]
    assert words[8:13].tolist() == [2, 4, 1, 0, 2]
    assert set(words[13:].tolist()) == {-1}
    with pytest.raises(VoidStepError, match="2 shares of 1"):
        header([(0, 1), (1, 1)]).pack(1)


@pytest.mark.parametrize("there", [(0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_a_roster_may_lack_a_share_that_the_others_make_up_for(there):
    """Three shares, each half of the variance."""
    packed = [header([(index, 1)]).pack(4) for index in there]
    for own in packed:
        check_headers(packed, own, 2, num_missing=1)
    with pytest.raises(VoidStepError):
        check_headers(packed[:1], packed[0], 2, num_missing=1)
    for index in (3, -1, there[0]):
        more = [*packed, header([(index, 1)]).pack(4)]
        with pytest.raises(VoidStepError, match="repeated or unknown"):
            check_headers(more, packed[0], 2, num_missing=1)
