"""Owners with epsilons of their own: against published equations and known figures."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.accountants import delta as delta_of
from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.calibration import (
    calibrate_noise_multiplier,
    largest_affordable,
)
from pft_ray.accounting.curves import price_of_reserve
from pft_ray.accounting.events import PoissonGaussian, Repeat
from pft_ray.accounting.owner_calibration import (
    OwnerTarget,
    individualise,
    owner_rows,
)
from pft_ray.accounting.owners import (
    Owner,
    Owners,
    noise_against_colluders,
    owners_of_rank,
)
from pft_ray.accounting.plan import Phase, Plan, UserLevel
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.errors import PlanError
from pft_ray.mechanisms import assign_shares

SIZES, STEPS = (20_400, 25_800, 13_800), 2344  # .34, .43 and .23 of 60,000
GROUPS = [
    OwnerTarget(name, size, float(target))
    for name, size, target in zip("abc", SIZES, (1, 2, 3), strict=True)
]
R1 = {"batch_size": 256.0, "delta": 1e-5, "num_steps": STEPS}


def test_known_figures_by_sample():
    """Renyi: sigma .8883, rates .001320, .004853 and .007540."""
    owners, sigma = individualise(GROUPS, method="sample", accountant="rdp", **R1)
    assert sigma == pytest.approx(0.8883, abs=2.5e-4)
    rates = [owner.sample_rate for owner in owners.members]
    assert rates == pytest.approx([0.001320, 0.004853, 0.007540], rel=2e-3)
    assert owners.expected_batch_size == pytest.approx(256, rel=1e-9)
    assert sigma < 1.1569, "less noise than if all had the smallest epsilon"


def test_known_figures_by_scale():
    """Renyi: sigma .9035, clip norms .781, 1.0568 and 1.2176 times C."""
    owners, sigma = individualise(GROUPS, method="scale", accountant="rdp", **R1)
    assert sigma == pytest.approx(0.9035, abs=2.5e-4)
    scales = [owner.clip_scale for owner in owners.members]
    assert scales == pytest.approx([0.781, 1.0568, 1.2176], abs=3e-4)
    # Alone at their epsilons: 1.1569 for 1 and .855 for 2.
    own = [owners.noise_multiplier(i, sigma) for i in range(3)]
    assert own[:2] == pytest.approx([1.1569, 0.855], abs=1e-3)


def check(targets, method, owners, sigma, options):
    """Every owner's bound holds and is used; the batch or the mean C is as asked."""
    size = sum(target.size for target in targets)
    for number, (target, owner) in enumerate(zip(targets, owners.members, strict=True)):
        assert (owner.name, owner.size, owner.epsilon) == dataclasses.astuple(target)
        # Priced from its own rate and clip norm, not through the code under test.
        step = PoissonGaussian(owner.sample_rate, sigma / owner.clip_scale)
        spent = epsilon(Repeat(step, options["num_steps"]), options["delta"])
        assert spent <= target.epsilon
        assert spent >= 0.998 * target.epsilon or owner.sample_rate == 1
        stated = owners.step_event(number, sigma)
        assert stated.noise_multiplier <= step.noise_multiplier
        assert stated.noise_multiplier == pytest.approx(step.noise_multiplier)
    drawn = sum(owner.sample_rate * owner.size for owner in owners.members)
    assert drawn == pytest.approx(options["batch_size"], rel=1e-8)
    mean = sum(owner.clip_scale * owner.size for owner in owners.members) / size
    assert mean == pytest.approx(1, rel=1e-9)
    key = "clip_scale" if method == "sample" else "sample_rate"
    assert len({getattr(owner, key) for owner in owners.members}) == 1


@pytest.mark.parametrize("method", ["sample", "scale"])
def test_every_owner_has_its_epsilon_by_pld(method):
    options = {"batch_size": 512.0, "delta": 1e-5, "num_steps": 70}
    sizes = (1411, 1785, 954)
    targets = [
        OwnerTarget(*row) for row in zip("abc", sizes, (1.0, 2.0, 3.0), strict=True)
    ]
    owners, sigma = individualise(targets, method=method, **options)
    check(targets, method, owners, sigma, options)
    spent = [o.sample_rate for o in owners.members]
    if method == "sample":
        assert spent == sorted(spent)
    alone = calibrate_noise_multiplier(
        target_epsilon=1.0, delta=1e-5, sample_rate=512 / 4150, num_steps=70
    )
    assert sigma < 0.7 * alone, "the least epsilon does not decide for all"


def test_small_noise_is_priced_on_the_grid_of_certificates():
    """The grid that is searched on would cost the first owner more than it may."""
    targets = [dataclasses.replace(GROUPS[0], epsilon=0.4), *GROUPS[1:]]
    owners, sigma = individualise(targets, method="sample", **R1)
    check(targets, "sample", owners, sigma, R1)
    coarse = Repeat(owners.step_event(0, sigma), STEPS)
    assert epsilon(coarse, 1e-5, grid=1e-3) > 0.4 * 1.004


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["sample", "scale"]),
    st.lists(
        st.tuples(st.integers(20, 2000), st.floats(0.5, 6.0)), min_size=2, max_size=4
    ),
    # Where nearly all units are drawn there may be no rates that differ: a typed error.
    st.floats(0.02, 0.9),
    st.integers(1, 40),
)
def test_bounds_hold_for_any_owners(method, declared, part, steps):
    targets = [
        OwnerTarget(str(i), size, target) for i, (size, target) in enumerate(declared)
    ]
    size = sum(target.size for target in targets)
    options = {"batch_size": part * size, "delta": 1e-6, "num_steps": steps}
    owners, sigma = individualise(targets, method=method, **options)
    check(targets, method, owners, sigma, options)


def test_equal_epsilons_are_the_uniform_mechanism():
    targets = [OwnerTarget("a", 100, 2.0), OwnerTarget("b", 300, 2.0)]
    options = {"batch_size": 40.0, "delta": 1e-5, "num_steps": 30}
    uniform = calibrate_noise_multiplier(
        target_epsilon=2.0, delta=1e-5, sample_rate=0.1, num_steps=30
    )
    for method in ("sample", "scale"):
        owners, sigma = individualise(targets, method=method, **options)
        assert sigma == pytest.approx(uniform, rel=1e-3)
        for owner in owners.members:
            assert owner.sample_rate == pytest.approx(0.1)
            assert owner.clip_scale == pytest.approx(1.0)


def test_an_owner_of_a_large_epsilon_may_be_in_every_step():
    targets = [OwnerTarget("a", 80, 0.1), OwnerTarget("b", 200, 3.0)]
    options = {"batch_size": 270.0, "delta": 1e-5, "num_steps": 7}
    owners, sigma = individualise(targets, method="sample", **options)
    assert [o.sample_rate for o in owners.members] == pytest.approx([0.875, 1.0])
    check(targets, "sample", owners, sigma, options)


@pytest.mark.parametrize("batch_size", [0.0, -1.0, 60_001.0, math.nan])
def test_batches_that_are_refused(batch_size):
    with pytest.raises(PlanError, match="batch"):
        individualise(GROUPS, method="sample", **(R1 | {"batch_size": batch_size}))


def test_only_bounds_may_gate():
    with pytest.raises(PlanError, match="gdp"):
        individualise(GROUPS, method="sample", accountant="gdp", **R1)


BY_SAMPLE = Owners("sample", (Owner("a", 100, 1.0, 0.1), Owner("b", 300, 2.0, 0.2)))
BY_SCALE = Owners(
    "scale", (Owner("a", 100, 1.0, 0.1, 1.3), Owner("b", 300, 2.0, 0.1, 0.9))
)


def make_plan(owners=BY_SAMPLE, **changes) -> Plan:
    fields = {
        "unit": "record",
        "size": owners.size,
        "sample_rate": owners.expected_batch_size / owners.size,
        "noise_multiplier": 1.5,
        "phases": (Phase("one", 20, "head", 0.5), Phase("two", 4, "head", 2.0)),
        "fault_reserve": 6,
        "delta": 1e-4,
        "num_shares": len(owners.members),
        "owners": owners,
    }
    return Plan(**(fields | changes))


@pytest.mark.parametrize(("owners", "worst"), [(BY_SAMPLE, 1), (BY_SCALE, 0)])
def test_a_plan_is_charged_what_its_worst_owner_loses(owners, worst):
    plan = make_plan(owners)
    assert plan.event == plan.owner_event(worst)
    assert plan.event != plan.owner_event(1 - worst)
    for target in (0.0, 0.3, 1.0, 3.0):
        whole = delta_of(plan.event, target, grid=1e-3)
        for number in range(2):
            assert delta_of(plan.owner_event(number), target, grid=1e-3) <= whole


def test_an_owner_is_charged_at_its_rate_and_its_clip_norm_and_t_max():
    assert make_plan().owner_event(0) == Repeat(PoissonGaussian(0.1, 1.5), 30)
    event = make_plan(BY_SCALE).owner_event(0)
    assert event.event.sample_rate == 0.1
    assert event.event.noise_multiplier == pytest.approx(1.5 / 1.3, rel=1e-14)
    assert Fraction(event.event.noise_multiplier) < Fraction(1.5) / Fraction(1.3)
    # The normaliser is the owners', whatever mean rate is written beside them.
    assert make_plan(sample_rate=0.5).expected_batch_size == 0.1 * 100 + 0.2 * 300


@given(st.floats(0.1, 10), st.floats(0.01, 100), st.floats(0.001, 1000))
def test_the_noise_that_is_charged_is_never_above_the_real_one(sigma, scale, clip_norm):
    """In exact arithmetic, with C_i as it is rounded when it is used."""
    members = (Owner("a", 1, 1.0, 0.1, scale), Owner("b", 1, 1.0, 0.1))
    charged = Owners("scale", members).noise_multiplier(0, sigma)
    used = Fraction(clip_norm * scale)
    assert Fraction(charged) * used <= Fraction(sigma) * Fraction(clip_norm)
    assert charged == pytest.approx(sigma / scale, rel=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_plan(size=401),
        lambda: make_plan(
            BY_SCALE,
            phases=(
                Phase(
                    "a", 1, "head", 1.0, "adaptive", QuantileClipping(0.5, 9.0, 0.1, 9)
                ),
            ),
        ),
        lambda: make_plan(unit="user", user=UserLevel("els", 2, 500)),
        lambda: Owners("sample", (Owner("a", 1, 1.0, 0.1),)),
        lambda: Owners("sample", (Owner("a", 1, 1.0, 0.1), Owner("a", 1, 1.0, 0.1))),
        lambda: Owners(
            "sample", (Owner("a", 1, 1.0, 0.1), Owner("b", 1, 1.0, 0.1, 0.5))
        ),
        lambda: Owners(
            "sample", (Owner("a", 1, 1.0, 0.1, 0.5), Owner("b", 1, 1.0, 0.1, 0.5))
        ),
        lambda: Owners("scale", (Owner("a", 1, 1.0, 0.1), Owner("b", 1, 1.0, 0.2))),
        lambda: Owners("other", (Owner("a", 1, 1.0, 0.1), Owner("b", 1, 1.0, 0.1))),
        lambda: Owner("", 1, 1.0, 0.1),
        lambda: Owner("a", 0, 1.0, 0.1),
        lambda: Owner("a", 1, 0.0, 0.1),
        lambda: Owner("a", 1, 1.0, 1.1),
        lambda: Owner("a", 1, 1.0, 0.1, math.inf),
        lambda: dataclasses.replace(make_plan(), owners=None).owner_event(0),
    ],
)
def test_owners_that_are_refused(make):
    with pytest.raises(PlanError):
        make()


@pytest.mark.parametrize(("num_owners", "known"), [(2, 2.81), (3, 1.79)])
def test_known_figures_against_one_colluding_owner(num_owners, known):
    """Noise falls to sigma sqrt((n - 1) / n): epsilon 1.10 becomes 2.81 or 1.79."""
    rate = 256 / 60_000
    members = tuple(Owner(str(i), 20_000, 2.0, rate) for i in range(num_owners))
    plan = make_plan(
        Owners("sample", members),
        noise_multiplier=1.0,
        phases=(Phase("one", STEPS, "head", 1.0),),
        fault_reserve=0,
        delta=1e-5,
    )
    for row in owner_rows(plan, num_workers=num_owners, num_colluding=1):
        assert row["epsilon"] == pytest.approx(1.10, abs=0.005)
        assert row["epsilon_against_colluders"] == pytest.approx(known, abs=0.006)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_colluders_are_the_worst_of_all_coalitions(data):
    """By going through all coalitions and the shares that their ranks really draw."""
    num_owners = data.draw(st.integers(2, 5))
    num_workers = data.draw(st.integers(1, 8))
    num_shares = num_workers + data.draw(st.integers(0, 7))
    colluding = data.draw(st.integers(0, 6))
    victim = data.draw(st.integers(0, num_owners - 1))
    drawn = [assign_shares(num_shares, num_workers, r) for r in range(num_workers)]
    served = [owners_of_rank(r, num_workers, num_owners) for r in range(num_workers)]
    others = [owner for owner in range(num_owners) if owner != victim]
    least = Fraction(1)
    for coalition in combinations(others, min(colluding, len(others))):
        ranks = [r for r in range(num_workers) if set(coalition) & set(served[r])]
        known = {index for rank in ranks for index, _ in drawn[rank]}
        unknown = 1 - Fraction(len(known), num_shares)
        if any(victim in served[rank] for rank in ranks):
            unknown = Fraction(0)
        least = min(least, unknown)
    found = noise_against_colluders(
        victim,
        num_owners=num_owners,
        num_workers=num_workers,
        num_shares=num_shares,
        num_colluding=colluding,
    )
    assert found == least


@pytest.mark.parametrize("num_workers", range(1, 9))
def test_every_owner_is_served_and_every_rank_serves(num_workers):
    served = [owners_of_rank(rank, num_workers, 3) for rank in range(num_workers)]
    assert {owner for rank in served for owner in rank} == {0, 1, 2}
    assert all(served) or num_workers > 3
    if num_workers >= 3:
        assert all(len(rank) == 1 for rank in served)


def test_owners_on_one_worker_hide_nothing_from_each_other():
    rows = owner_rows(make_plan(), num_workers=1, num_colluding=1)
    assert [row["epsilon_against_colluders"] for row in rows] == [None, None]
    alone = owner_rows(make_plan(), num_workers=1, num_colluding=0)
    for row in alone:
        assert row["epsilon_against_colluders"] == row["epsilon"]


def test_the_reserve_is_priced_for_the_worst_owner():
    price = price_of_reserve(make_plan(BY_SCALE))
    assert price.with_reserve == pytest.approx(1.5 / 1.3)
    assert 0.02 < price.extra_noise < 0.25


def test_what_would_fit_is_said_without_numbers_that_are_not_the_plans():
    found = largest_affordable(make_plan(), epsilon=0.5, delta=1e-4)
    assert (found["epsilon"], found["noise_multiplier"]) == (0.5, None)
    assert (found["num_steps"], found["batch_size"]) == (None, None)
