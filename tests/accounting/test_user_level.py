"""Users whose records are drawn one by one: against published and direct figures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from pft_ray.accounting.accountants import delta, epsilon
from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.accounting.curves import price_of_reserve
from pft_ray.accounting.events import PoissonGaussian, PoissonMixture, Repeat
from pft_ray.accounting.mixtures import mixture_distribution
from pft_ray.accounting.plan import Phase, Plan, UserLevel
from pft_ray.accounting.renyi import renyi_divergence
from pft_ray.accounting.user_levels import (
    UserPrice,
    cheaper,
    price_user_levels,
    reason,
)
from pft_ray.errors import PlanError

RATE, STEPS = 256 / 60000, 2344


def directly(rate, sigma, records, target):
    """The larger hockey-stick divergence of one step, by integrating densities."""
    x = np.linspace(-40 * sigma, records + 40 * sigma, 400_001)
    pdf = np.exp(-(((x - np.arange(records + 1)[:, None]) / sigma) ** 2) / 2)
    pdf /= sigma * math.sqrt(2 * math.pi)
    mixed = binom.pmf(np.arange(records + 1), records, rate) @ pdf
    both = (mixed, pdf[0]), (pdf[0], mixed)
    return max(
        np.trapezoid(np.clip(p - math.exp(target) * q, 0, None), x) for p, q in both
    )


@pytest.mark.parametrize(
    ("sigma", "records", "known"),
    # dp-accounting's mixture event through its own accountant, grid 1e-3.
    [(1, 2, 2.37), (1, 4, 5.22), (4, 2, 0.369), (4, 4, 0.776), (4, 8, 1.66)],
)
def test_known_figures(sigma, records, known):
    event = Repeat(PoissonMixture(RATE, sigma, records), STEPS)
    assert epsilon(event, 1e-5, grid=1e-3) == pytest.approx(known, abs=0.005)
    assert epsilon(event, 1e-5, accountant="rdp") >= epsilon(event, 1e-5, grid=1e-3)


@settings(max_examples=5, deadline=None)
@given(
    st.floats(0.001, 0.9), st.floats(0.6, 5), st.integers(2, 6), st.floats(0.01, 2.0)
)
def test_one_step_is_the_integral_of_its_densities(rate, sigma, records, target):
    exact = directly(rate, sigma, records, target)
    stated = delta(PoissonMixture(rate, sigma, records), target, grid=1e-3)
    assert exact <= stated + 1e-9
    assert stated <= exact * 1.01 + 2e-4


@pytest.mark.parametrize(
    ("rate", "sigma", "records"), [(0.05, 2.0, 4), (0.3, 0.5, 3), (0.001, 1.0, 8)]
)
def test_equals_the_distribution_of_dp_accounting(rate, sigma, records):
    leaf = PoissonMixture(rate, sigma, records)
    known = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        sigma,
        range(records + 1),
        binom.pmf(np.arange(records + 1), records, rate),
        value_discretization_interval=0.02,
    ).self_compose(20)
    found = mixture_distribution(leaf, 0.02).self_compose(20)
    for target in (1e-3, 1e-5, 1e-8):
        assert found.get_epsilon_for_delta(target) == pytest.approx(
            known.get_epsilon_for_delta(target), rel=1e-6
        )


def test_losses_beyond_the_largest_exponential_are_not_lost():
    """Both records are in with probability 1/4; the loss is then N(798.6, 40^2)."""
    narrow = PoissonMixture(0.5, 0.05, 2)
    for target in (700.0, 720.0, 790.0):
        known = 0.25 * norm.cdf((798.6 - target) / 40)
        assert delta(narrow, target, grid=0.05) == pytest.approx(known, rel=0.03)


def test_one_record_is_the_record_event():
    one = Repeat(PoissonMixture(RATE, 1.0, 1), STEPS)
    assert epsilon(one, 1e-5) == epsilon(
        Repeat(PoissonGaussian(RATE, 1.0), STEPS), 1e-5
    )


def test_integrals_of_one_record_are_the_known_series():
    from pft_ray.accounting.renyi import _mixture

    for rate, sigma in ((0.01, 1.0), (0.3, 0.7), (0.9, 4.0)):
        for order in (2, 3, 8, 32, 64):
            known = renyi_divergence(((PoissonGaussian(rate, sigma), 1),), order)
            found = _mixture(PoissonMixture(rate, sigma, 1), order)
            assert found == pytest.approx(known, rel=1e-7, abs=1e-9)


def group_epsilon(record_event, records, total_delta):
    """Group privacy: k times epsilon costs delta * (e^(k eps) - 1) / (e^eps - 1)."""
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        factor = (
            math.expm1(records * middle) / math.expm1(middle) if middle else records
        )
        if delta(record_event, middle, grid=1e-3) * factor <= total_delta:
            high = middle
        else:
            low = middle
    return records * high


@pytest.mark.parametrize(("sigma", "records"), [(1.0, 2), (4.0, 2), (4.0, 4)])
def test_users_lie_between_a_record_and_its_group(sigma, records):
    record = Repeat(PoissonGaussian(RATE, sigma), STEPS)
    users = Repeat(PoissonMixture(RATE, sigma, records), STEPS)
    found = epsilon(users, 1e-5, grid=1e-3)
    assert epsilon(record, 1e-5, grid=1e-3) < found
    assert found <= group_epsilon(record, records, 1e-5)


def test_all_records_of_a_user_in_every_step_divide_the_noise():
    assert epsilon(PoissonMixture(1.0, 3.0, 3), 1e-5) == epsilon(
        PoissonGaussian(1.0, 1.0), 1e-5
    )


def test_weights_that_vanish_do_no_harm():
    rare = PoissonMixture(1e-5, 4.0, 100)
    assert sum(rare.weights) == pytest.approx(1.0, abs=1e-15)
    assert 0 < epsilon(rare, 1e-5) < 5


@pytest.mark.parametrize("records", [0, 1001, 1.5, "2", True])
def test_caps_that_are_refused(records):
    with pytest.raises(PlanError):
        PoissonMixture(0.1, 1.0, records)


def prices(cap, records, **changes):
    fields = {
        "num_users": 1000,
        "target_epsilon": 4.0,
        "delta": 1e-5,
        "sample_rate": 0.05,
        "num_steps": 4,
    }
    return price_user_levels(UserLevel("uls", cap, records), **(fields | changes))


def test_the_cheaper_way_has_less_noise_to_signal():
    """Users of hardly more than one record: drawing records pays for four each."""
    users, records = prices(4, 1300)
    assert (users.expected_count, records.expected_count) == (50.0, 65.0)
    for price in (users, records):
        event = Repeat(price.user.step_event(0.05, price.noise_multiplier), 4)
        assert epsilon(event, 1e-5) <= 4.0
        assert epsilon(event, 1e-5) >= 3.98
    assert cheaper((users, records)) is users
    assert "uls, because it has less noise" in reason((users, records), "uls", "auto")
    asked = reason((users, records), "els", "els")
    assert asked.endswith("uls would have less noise.")
    # The same noise for four times the records, all of which count: els is taken.
    full = UserPrice(replace(records.user, num_records=4000), 1.1822, 200.0)
    assert cheaper((users, full)) is full
    unreachable = replace(users, noise_multiplier=math.inf)
    with pytest.raises(PlanError, match="neither by users nor by records"):
        cheaper((unreachable, replace(full, noise_multiplier=math.inf)))


def test_a_cap_whose_losses_no_grid_holds_is_priced_above_that_noise():
    """Below sigma 27.9 the losses of 512 records lie outside every grid."""
    user = UserLevel("els", 512, 2000)
    sigma = calibrate_noise_multiplier(
        target_epsilon=8.0, delta=1e-5, sample_rate=0.01, num_steps=22, user=user
    )
    assert epsilon(Repeat(user.step_event(0.01, sigma), 22), 1e-5) <= 8.0
    assert epsilon(Repeat(user.step_event(0.01, 0.99 * sigma), 22), 1e-5) == math.inf


def test_the_price_of_the_reserve_is_that_of_users():
    users = UserLevel("els", 3, 200)
    plan = Plan(
        unit="user",
        size=73,
        sample_rate=0.2,
        noise_multiplier=2.5,
        phases=(Phase("one", 16, "head", 1.0),),
        fault_reserve=6,
        delta=1e-5,
        user=users,
    )
    assert plan.event == Repeat(PoissonMixture(0.2, 2.5, 3), 22)
    assert plan.expected_batch_size == pytest.approx(40)
    assert 0 < price_of_reserve(plan).extra_noise < 0.3
