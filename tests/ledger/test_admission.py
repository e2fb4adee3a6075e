"""The pure scheduler: known small cases, and a slow reference written another way."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.errors import InputError
from pft_ray.ledger.admission import (
    Job,
    Missing,
    Order,
    Supply,
    ahead,
    is_possible,
    missing,
    next_job,
)

FCFS, DPF4 = Order(), Order("dpf", 4)


def job(name, **demand):
    return Job(name, {block: (Fraction(part),) for block, part in demand.items()})


def supply(left="1", arrivals=0, unused="1"):
    return Supply((Fraction(left),), (Fraction(unused),), arrivals)


def names(jobs):
    return [found.name for found in jobs]


def test_first_come_is_first_served_and_does_not_jump_the_queue():
    supplies = {"x": supply("1/2")}
    big, small = job("big", x="3/4"), job("small", x="1/4")
    assert next_job(FCFS, [big, small], supplies) is None
    assert names(ahead(FCFS, small, [big, small], supplies)) == ["big"]
    assert next_job(FCFS, [small, big], supplies) is small


def test_who_shares_no_block_passes():
    supplies = {"x": supply("1/2"), "y": supply()}
    big, other = job("big", x="3/4"), job("other", y="1")
    assert next_job(FCFS, [big, other], supplies) is other
    assert ahead(FCFS, other, [big, other], supplies) == []


def test_who_waits_holds_a_place_on_all_its_blocks():
    """C shares a block with B alone, which itself waits behind A."""
    supplies = {"x": supply("1/2"), "y": supply()}
    jobs = [job("a", x="3/4"), job("b", x="1/4", y="1/2"), job("c", y="1/2")]
    assert next_job(FCFS, jobs, supplies) is None
    assert names(ahead(FCFS, jobs[2], jobs, supplies)) == ["b"]


def test_who_can_never_fit_holds_nobody_up():
    supplies = {"x": supply("1/2", unused="1/2")}
    hopeless, small = job("hopeless", x="3/4"), job("small", x="1/4")
    assert not is_possible(hopeless, supplies)
    assert next_job(FCFS, [hopeless, small], supplies) is small
    assert ahead(FCFS, small, [hopeless, small], supplies) == []


def test_every_arrival_unlocks_its_part():
    """N = 4: after n arrivals n quarters are unlocked; what is held is taken off."""
    for arrivals, left, free in [(0, "1", 0), (1, "1", "1/4"), (3, "1/2", "1/4"),
                                 (4, "1/2", "1/2"), (9, "1/2", "1/2")]:  # fmt: skip
        assert supply(left, arrivals).free(DPF4) == (Fraction(free),)
        assert supply(left, arrivals).free(FCFS) == (Fraction(left),)


def test_the_smallest_dominant_share_that_fits_goes_first():
    supplies = {"x": supply("1", 4), "y": supply("1", 1)}
    jobs = [
        job("large", x="1/2"),
        job("locked", y="1/3"),  # a quarter is unlocked
        job("wide", x="1/10", y="1/5"),
        job("small", x="1/6"),
    ]
    assert next_job(DPF4, jobs, supplies) is jobs[3]
    assert names(ahead(DPF4, jobs[0], jobs, supplies)) == ["wide", "small"]
    assert ahead(DPF4, jobs[2], jobs, supplies) == [jobs[3]]
    assert missing(DPF4, jobs[1], supplies) == Missing("y", 0, Fraction(1, 12))


def test_ties_go_by_the_next_largest_share_then_by_arrival():
    supplies = {"x": supply("1", 4), "y": supply("1", 4)}
    wide, late, first, last = (
        job("wide", x="1/4", y="1/8"),
        job("late", y="1/9", x="1/4"),
        job("first", x="1/4"),
        job("last", x="1/4"),
    )
    waiting = [wide, late, first, last]
    order = []
    while waiting:
        found = next_job(DPF4, waiting, supplies)
        order.append(found.name)
        waiting.remove(found)
    assert order == ["first", "last", "late", "wide"]


def test_every_part_of_a_budget_counts():
    """Epsilon would do, delta does not; the share is the larger part."""
    supplies = {"x": Supply((Fraction(1), Fraction(1, 10)), (Fraction(1),) * 2, 4)}
    asks = Job("asks", {"x": (Fraction(1, 10), Fraction(1, 5))})
    assert asks.shares == (Fraction(1, 5),)
    assert next_job(FCFS, [asks], supplies) is None
    assert missing(FCFS, asks, supplies) == Missing("x", 1, Fraction(1, 10))


@pytest.mark.parametrize(
    ("kind", "n"), [("lifo", 0), ("fcfs", 3), ("dpf", 0), ("dpf", -2)]
)
def test_orders_without_sense_are_refused(kind, n):
    with pytest.raises(InputError):
        Order(kind, n)


# -- against a reference -----------------------------------------------------------

BLOCKS = "xyz"
PARTS = st.fractions(0, 1, max_denominator=12)
DEMANDS = st.dictionaries(
    st.sampled_from(BLOCKS),
    st.fractions("1/12", 1, max_denominator=12),
    min_size=1,
)
SUPPLIES = st.fixed_dictionaries({
    name: st.tuples(PARTS, PARTS, st.integers(0, 6)) for name in BLOCKS
})  # fmt: skip


def reference(order, demands, supplies):
    """Who goes next, as the definition says, with integers of 1/27720."""
    whole = 27_720  # a multiple of 1..12, so every fraction here is whole
    asked = [{b: int(d * whole) for b, d in demand.items()} for demand in demands]
    left = {b: int(s[0] * whole) for b, s in supplies.items()}
    used = {b: whole - int(max(s[0], s[1]) * whole) for b, s in supplies.items()}

    def fits(place):
        for block, amount in asked[place].items():
            free = left[block]
            if order.kind == "dpf":
                unlocked = min(whole, supplies[block][2] * whole // order.dpf_n)
                free = unlocked - (whole - left[block])
            if amount > free:
                return False
        return True

    fitting = [place for place in range(len(asked)) if fits(place)]
    if order.kind == "dpf":
        ranks = [
            (*sorted(asked[place].values(), reverse=True), -1, place)
            for place in fitting
        ]
        return min(ranks)[-1] if ranks else None
    for place in fitting:
        earlier = [
            other
            for other in range(place)
            if set(asked[other]) & set(asked[place])
            and all(a + used[b] <= whole for b, a in asked[other].items())
        ]
        if not earlier:
            return place
    return None


@settings(deadline=None)
@given(
    order=st.sampled_from([Order(), *(Order("dpf", n) for n in (1, 2, 3, 4, 6))]),
    demands=st.lists(DEMANDS, max_size=6),
    supplies=SUPPLIES,
)
def test_equals_a_reference(order, demands, supplies):
    jobs = [
        Job(str(place), {block: (part,) for block, part in demand.items()})
        for place, demand in enumerate(demands)
    ]
    found = next_job(
        order,
        jobs,
        {
            name: Supply((left,), (max(left, other),), arrivals)
            for name, (left, other, arrivals) in supplies.items()
        },
    )
    expected = reference(order, demands, supplies)
    assert (None if found is None else int(found.name)) == expected


@settings(deadline=None)
@given(
    order=st.sampled_from([Order(), Order("dpf", 2)]),
    demands=st.lists(DEMANDS, min_size=1, max_size=6),
    supplies=SUPPLIES,
)
def test_who_is_next_has_nobody_ahead_and_fits(order, demands, supplies):
    jobs = [
        Job(str(place), {block: (part,) for block, part in demand.items()})
        for place, demand in enumerate(demands)
    ]
    there = {
        name: Supply((left,), (max(left, other),), arrivals)
        for name, (left, other, arrivals) in supplies.items()
    }
    ready = [
        found
        for found in jobs
        if missing(order, found, there) is None and not ahead(order, found, jobs, there)
    ]
    chosen = next_job(order, jobs, there)
    assert (chosen is None) == (not ready)
    assert chosen is None or chosen in ready
