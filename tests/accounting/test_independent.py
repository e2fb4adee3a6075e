"""Workers that draw independently: n events a step, and what that wastes."""

from __future__ import annotations

import math

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.curves import price_of_reserve
from pft_ray.accounting.events import PoissonGaussian, Repeat
from pft_ray.accounting.independent import price_independent
from pft_ray.accounting.owners import Owner, Owners
from pft_ray.accounting.plan import Phase, Plan, UserLevel
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.errors import PlanError

RATE, STEPS = 256 / 60_000, 2344


def make_plan(**changes) -> Plan:
    fields = {
        "unit": "record",
        "size": 60_000,
        "sample_rate": RATE,
        "noise_multiplier": 1.0,
        "phases": (Phase("one", STEPS, "head", 1.0),),
        "fault_reserve": 0,
        "delta": 1e-5,
        "num_shares": 4,
        "independent_workers": 4,
    }
    return Plan(**(fields | changes))


def test_every_step_is_as_many_events_as_workers():
    plan = make_plan()
    spent = epsilon(plan.event, 1e-5)
    single = Repeat(PoissonGaussian(RATE, 1.0), 4 * STEPS)
    assert spent == epsilon(single, 1e-5)
    one = make_plan(num_shares=1, independent_workers=1)
    # The known figure of one worker; n events cost less than n times as much.
    assert epsilon(one.event, 1e-5) == pytest.approx(1.0999, abs=1e-3)
    assert 1.5 < spent < 4 * 1.0999
    assert plan.expected_batch_size == pytest.approx(4 * 256)


def test_the_price_is_the_noise_of_the_sum_against_one_mechanism():
    plan = make_plan(phases=(Phase("one", 70, "head", 1.0),), sample_rate=0.03)
    price = price_independent(plan)
    assert price.num_events == 280
    spent = epsilon(plan.event, 1e-5)
    central = Repeat(PoissonGaussian(0.12, price.central_noise_multiplier), 70)
    assert 0.998 * spent < epsilon(central, 1e-5) <= spent
    wasted = plan.noise_multiplier * math.sqrt(4) / price.central_noise_multiplier - 1
    assert price.extra_noise == pytest.approx(wasted)
    assert price.extra_noise > 0.1


def test_the_reserve_is_paid_by_every_worker():
    plan = make_plan(
        phases=(Phase("one", 60, "head", 1.0),), sample_rate=0.03, fault_reserve=10
    )
    price = price_of_reserve(plan)
    without = Repeat(PoissonGaussian(0.03, price.without_reserve), 240)
    assert epsilon(without, 1e-5) == pytest.approx(epsilon(plan.event, 1e-5), rel=2e-3)


MOVING = Phase("a", 1, "head", 1.0, "adaptive", QuantileClipping(0.5, 9.0, 0.1, 9.0))
OWNERS = Owners("sample", (Owner("a", 30_000, 1.0, 0.1), Owner("b", 30_000, 1.0, 0.1)))


@pytest.mark.parametrize(
    "change",
    [
        {"independent_workers": 0},
        {"num_shares": 5},
        {"unit": "user", "user": UserLevel("uls", 2, 90_000)},
        {"owners": OWNERS},
        {"phases": (MOVING,)},
    ],
)
def test_plans_that_are_refused(change):
    with pytest.raises(PlanError):
        make_plan(**change)
