"""Accountants against published values, other libraries and closed forms."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pft_ray.accounting.accountants import (
    SEARCH_GRID,
    delta,
    epsilon,
    epsilon_by_accountant,
    require_gate,
)
from pft_ray.accounting.events import (
    Composed,
    DiscreteGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    Repeat,
    count_leaves,
)
from pft_ray.accounting.loss_distribution import step_distribution
from pft_ray.accounting.renyi import ORDERS, renyi_divergence, renyi_epsilon
from pft_ray.errors import PlanError

VECTORS = Path(__file__).parents[1] / "vectors"


def rows(name):
    with (VECTORS / name).open() as file:
        return list(csv.DictReader(file))


def event_of(row):
    step = PoissonGaussian(float(row["sample_rate"]), float(row["noise_multiplier"]))
    return Repeat(step, int(row["steps"]))


COMPOSED = rows("composed_gaussians.csv")
PUBLISHED = rows("published.csv")


@pytest.mark.parametrize("row", COMPOSED, ids=lambda row: row["noise_multiplier"])
def test_composed_gaussians(row):
    event, at = event_of(row), float(row["delta"])
    pld = epsilon(event, at)
    assert abs(pld - float(row["eps_pld"])) <= 1e-3
    upper = float(row["eps_prv_upper"])
    assert upper - 0.0203 - 1e-6 <= pld <= upper
    rdp = epsilon(event, at, accountant="rdp")
    assert rdp == pytest.approx(float(row["eps_rdp"]), rel=2e-3)
    assert rdp >= pld


@pytest.mark.parametrize(
    "row", [r for r in COMPOSED if r["sample_rate"] != "1.0"], ids=lambda r: r["steps"]
)
def test_the_central_limit_value_is_the_known_one(row):
    found = epsilon(event_of(row), float(row["delta"]), accountant="gdp")
    assert found == pytest.approx(float(row["eps_gdp"]), abs=2e-6)


def test_the_central_limit_can_be_below_the_truth():
    row = next(r for r in COMPOSED if r["noise_multiplier"] == "0.6")
    event, at = event_of(row), float(row["delta"])
    assert epsilon(event, at, accountant="gdp") < epsilon(event, at) - 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("row", COMPOSED, ids=lambda row: row["noise_multiplier"])
def test_pld_lies_between_the_bounds_of_opacus_prv(row):
    prv = pytest.importorskip("opacus.accountants.prv")
    at = float(row["delta"])
    accountant = prv.PRVAccountant()
    accountant.history = [
        (
            float(row["noise_multiplier"]),
            float(row["sample_rate"]),
            int(row["steps"]),
        )
    ]
    found = accountant._get_dprv(eps_error=0.01, delta_error=at / 1000)
    low, estimate, high = found.compute_epsilon(at, at / 1000, 0.01)
    pld = epsilon(event_of(row), at)
    assert low - 1e-6 <= pld <= high
    assert pld == pytest.approx(estimate, abs=2e-4)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["source"])
def test_published_values(row):
    event, at = event_of(row), float(row["delta"])
    if row["accountant"] == "classic":
        leaves = count_leaves(event)
        found = min(
            renyi_divergence(leaves, order) + math.log(1 / at) / (order - 1)
            for order in ORDERS
        )
    else:
        found = epsilon(event, at, accountant=row["accountant"])
    assert found == pytest.approx(float(row["epsilon"]), abs=float(row["tolerance"]))


def test_reference_run():
    """256 of 60000, sigma 1, 2344 steps, delta 1e-5."""
    both = epsilon_by_accountant(Repeat(PoissonGaussian(256 / 60000, 1.0), 2344), 1e-5)
    assert both["pld"] == pytest.approx(1.0999, abs=1e-4)
    assert both["rdp"] == pytest.approx(1.3523, abs=5e-4)


def test_events_with_different_parameters_compose():
    event = Composed(
        (
            Repeat(PoissonGaussian(0.04, 1.5), 1000),
            Repeat(PoissonGaussian(0.04, 1.0), 50),
        )
    )
    assert epsilon(event, 1e-5) == pytest.approx(4.71477, abs=1e-3)
    assert epsilon(event, 1e-5, accountant="rdp") == pytest.approx(5.17257, abs=2e-3)


def test_composition_does_not_depend_on_how_it_is_written():
    step, look = PoissonGaussian(0.05, 2.0), DiscreteGaussian(4.0)
    one = Composed((Repeat(step, 30), Repeat(Repeat(look, 2), 3)))
    two = Composed((look, Repeat(Composed((Repeat(step, 6), look)), 5)))
    assert epsilon(one, 1e-6) == pytest.approx(epsilon(two, 1e-6), abs=1e-9)
    assert epsilon(one, 1e-6) > epsilon(Repeat(step, 30), 1e-6) + 0.1


def test_exact_gaussian():
    event = Repeat(Gaussian(5.0), 10)
    assert epsilon(event, 1e-5) == pytest.approx(2.594383380528, abs=1e-9)
    assert epsilon(event, 1e-5) >= 2.594383380527
    sampled_always = Repeat(PoissonGaussian(1.0, 5.0), 10)
    assert epsilon(sampled_always, 1e-5) == epsilon(event, 1e-5)
    mixed = Composed((Gaussian(5 / 3), Gaussian(5.0)))  # 9 + 1 of the same precision
    assert epsilon(mixed, 1e-5) == pytest.approx(epsilon(event, 1e-5), abs=1e-9)


def test_gaussian_on_the_grid_is_never_below_the_exact_value():
    """Sampling at almost 1 goes through the grid, where the truth is still known."""
    for count in (1, 1000):
        sigma = 5 * math.sqrt(count / 10)
        for at in (1e-5, 1e-8, 1e-10):
            exact = epsilon(Repeat(Gaussian(sigma), count), at)
            grid = epsilon(Repeat(PoissonGaussian(1 - 2**-40, sigma), count), at)
            assert exact - 1e-8 <= grid <= exact + 2e-3


def test_every_kind_of_event_counts_in_a_mixture():
    """One Gaussian, one sampled almost always, one discrete and almost smooth."""
    kinds = (
        Gaussian(2.0),
        PoissonGaussian(1 - 2**-40, 2.0),
        DiscreteGaussian(2e3, 1000),
    )
    for parts in (kinds, kinds[:2], kinds[1:], kinds[::2]):
        exact = epsilon(Repeat(Gaussian(2.0), len(parts)), 1e-5)
        found = epsilon(Composed(parts), 1e-5, grid=SEARCH_GRID)
        assert exact - 1e-6 <= found <= exact + 2e-3


def exact_sampled_delta(rate, sigma, eps):
    """Hockey-stick divergence of one sampled Gaussian, larger of both directions."""
    # remove: (1-q) N(0) + q N(1) against N(0)
    top = math.log((math.exp(eps) - (1 - rate)) / rate) * sigma**2 + 0.5
    remove = (
        (1 - rate) * norm.sf(top / sigma)
        + rate * norm.sf((top - 1) / sigma)
        - math.exp(eps) * norm.sf(top / sigma)
    )
    add = 0.0
    left = math.exp(-eps) - (1 - rate)
    if left > 0:
        cut = math.log(left / rate) * sigma**2 + 0.5
        mixture = (1 - rate) * norm.cdf(cut / sigma) + rate * norm.cdf(
            (cut - 1) / sigma
        )
        add = norm.cdf(cut / sigma) - math.exp(eps) * mixture
    return max(remove, add)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.7])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_one_sampled_step_against_its_closed_form(rate, sigma):
    event = PoissonGaussian(rate, sigma)
    for at in (1e-3, 1e-6):
        found = epsilon(event, at, grid=SEARCH_GRID)
        exact = exact_sampled_delta(rate, sigma, found)
        assert exact <= at * (1 + 1e-9)  # private at the epsilon that is claimed
        if found > 1e-3:
            assert exact_sampled_delta(rate, sigma, found - 1e-3) > at  # and tight
        # delta of the same event, the other way round
        back = delta(event, found, grid=SEARCH_GRID)
        assert exact <= back <= at * (1 + 1e-6) + 2e-13


def exact_discrete_delta(sigma, sensitivity, eps):
    """Hockey-stick divergence of one discrete Gaussian, summed over the integers."""
    reach = int(40 * sigma) + 2 * sensitivity
    noise = np.arange(-reach, reach + 1, dtype=float)
    weights = np.exp(-(noise**2) / (2 * sigma**2))
    here = weights / weights.sum()
    there = np.exp(-((noise - sensitivity) ** 2) / (2 * sigma**2)) / weights.sum()
    return float(np.maximum(here - math.exp(eps) * there, 0).sum())


@pytest.mark.parametrize(
    ("sigma", "sensitivity"), [(0.5, 1), (1.0, 1), (4.0, 1), (3.0, 2), (200.0, 100)]
)
def test_one_discrete_gaussian_against_its_definition(sigma, sensitivity):
    event = DiscreteGaussian(sigma, sensitivity)
    for at in (1e-3, 1e-5, 1e-7):
        found = epsilon(event, at)
        assert exact_discrete_delta(sigma, sensitivity, found) <= at * (1 + 1e-9)
        assert exact_discrete_delta(sigma, sensitivity, found - 1e-3) > at


def test_two_discrete_gaussians_against_their_product():
    """Brute force over all pairs of noise values."""
    sigma, at = 1.5, 1e-5
    noise = np.arange(-40, 41, dtype=float)
    weights = np.exp(-(noise**2) / (2 * sigma**2))
    here = weights / weights.sum()
    there = np.exp(-((noise - 1) ** 2) / (2 * sigma**2)) / weights.sum()
    here, there = np.outer(here, here), np.outer(there, there)

    def exact(eps):
        return float(np.maximum(here - math.exp(eps) * there, 0).sum())

    found = epsilon(Repeat(DiscreteGaussian(sigma), 2), at)
    assert exact(found) <= at * (1 + 1e-9)
    assert exact(found - 1e-3) > at


def test_a_scaled_discrete_gaussian_approaches_the_gaussian():
    """Sum of losses: sensitivity 1024 on a fine integer grid, 7 looks."""
    fine = epsilon(Repeat(DiscreteGaussian(5.0 * 1024, 1024), 7), 1e-5)
    assert fine == pytest.approx(epsilon(Repeat(Gaussian(5.0), 7), 1e-5), abs=1e-4)
    double = epsilon(Repeat(DiscreteGaussian(5.0 * 1024, 2048), 7), 1e-5)
    assert double == pytest.approx(epsilon(Repeat(Gaussian(2.5), 7), 1e-5), abs=1e-4)


def test_discrete_distribution_agrees_with_the_library():
    """The fast construction against dp-accounting's own, which rounds up more."""
    from dp_accounting.pld import privacy_loss_distribution as library

    for sigma, sensitivity in ((0.8, 1), (6.0, 1), (30.0, 8)):
        ours = step_distribution(DiscreteGaussian(sigma, sensitivity), 1e-3)
        slow = library.from_discrete_gaussian_mechanism(
            sigma,
            sensitivity,
            value_discretization_interval=1e-3,
            use_connect_dots=True,
        )
        rough = library.from_discrete_gaussian_mechanism(
            sigma, sensitivity, value_discretization_interval=1e-3
        )
        for eps in (0.0, 0.3, 1.0):
            found = ours.self_compose(6).get_delta_for_epsilon(eps)
            assert found == pytest.approx(
                slow.self_compose(6).get_delta_for_epsilon(eps), rel=1e-6
            )
            assert found <= rough.self_compose(6).get_delta_for_epsilon(eps)


@given(
    rate=st.floats(1e-4, 1.0),
    sigma=st.floats(0.4, 20.0),
    count=st.integers(1, 3000),
    at=st.floats(1e-9, 1e-3),
)
@settings(max_examples=15, deadline=None)
def test_rdp_is_never_below_pld(rate, sigma, count, at):
    event = Repeat(PoissonGaussian(rate, sigma), count)
    pld = epsilon(event, at, grid=SEARCH_GRID)
    assert pld <= renyi_epsilon(count_leaves(event), at)
    assert pld <= epsilon(event, at, accountant="rdp") + 0.02


@given(rate=st.floats(1e-3, 0.5), sigma=st.floats(0.5, 10.0), count=st.integers(1, 500))
@settings(max_examples=15, deadline=None)
def test_integer_orders_agree_with_the_library(rate, sigma, count):
    """Our divergence, rounded up, against dp-accounting's at single orders."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    leaves = count_leaves(Repeat(PoissonGaussian(rate, sigma), count))
    for order in (2, 5, 32, 256):
        library = RdpAccountant([order])
        library.compose(
            dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), count
        )
        # At delta 1e-300 nothing is clipped, so the divergence can be read off.
        added = math.log1p(-1 / order) - math.log(1e-300 * order) / (order - 1)
        known = library.get_epsilon(1e-300) - added
        assert renyi_divergence(leaves, order) == pytest.approx(
            known, rel=1e-6, abs=1e-9
        )
        assert renyi_divergence(leaves, order) >= known * (1 - 1e-9) - 1e-9


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_more_steps_less_noise_and_smaller_delta_cost_more(accountant):
    def cost(rate=0.01, sigma=1.0, count=500, at=1e-5):
        event = Repeat(PoissonGaussian(rate, sigma), count)
        return epsilon(event, at, accountant=accountant, grid=SEARCH_GRID)

    base = cost()
    assert cost(count=600) > base
    assert cost(sigma=0.9) > base
    assert cost(rate=0.02) > base
    assert cost(at=1e-6) > base


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_delta_undoes_epsilon(accountant):
    event = Repeat(PoissonGaussian(0.02, 1.2), 300)
    for at in (1e-4, 1e-6):
        found = epsilon(event, at, accountant=accountant)
        back = delta(event, found, accountant=accountant)
        assert back == pytest.approx(at, rel=2e-3)


def test_non_private_is_infinite():
    both = Composed((Gaussian(10.0), NonPrivate()))
    for accountant in ("pld", "rdp", "gdp"):
        assert epsilon(both, 1e-5, accountant=accountant) == math.inf
        assert delta(both, 3.0, accountant=accountant) == 1.0


def test_nothing_costs_nothing():
    assert epsilon(Composed(()), 1e-5) == 0.0
    assert delta(Composed(()), 0.0) == 0.0


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(1e-3),
        Gaussian(1e-200),
        PoissonGaussian(0.5, 1e-200),
        PoissonGaussian(0.5, 0.005),
        DiscreteGaussian(1e-200),
        DiscreteGaussian(1e9, 10**8),
        Repeat(DiscreteGaussian(0.1), 30),
        Repeat(PoissonGaussian(1e-9, 1.0), 10**9),
        Repeat(PoissonGaussian(0.3, 1.0), 10**12),
        Repeat(PoissonGaussian(1e-6, 0.05), 5),
    ],
)
def test_extreme_events_give_a_bound_and_no_error(event):
    """Too wide for a grid: the Renyi bound stands in, and infinity is an answer."""
    pld = epsilon(event, 1e-6)
    assert 0 <= pld <= epsilon(event, 1e-6, accountant="rdp")
    assert 0 <= delta(event, 1.0) <= 1


def test_a_delta_below_what_floating_point_can_tell_is_safe():
    event = Repeat(PoissonGaussian(0.01, 4.0), 1000)
    assert epsilon(event, 1e-15) >= epsilon(event, 1e-11) > epsilon(event, 1e-5)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1e-5, math.nan, "1e-5"])
def test_deltas_that_are_refused(bad):
    with pytest.raises(PlanError, match="delta"):
        epsilon(Gaussian(1.0), bad)


def test_unknown_names_are_refused():
    with pytest.raises(PlanError, match="moments"):
        epsilon(Gaussian(1.0), 1e-5, accountant="moments")
    with pytest.raises(PlanError, match="moments"):
        delta(Gaussian(1.0), 1.0, accountant="moments")
    with pytest.raises(PlanError, match="epsilon"):
        delta(Gaussian(1.0), -1.0)


def test_only_upper_bounds_may_gate():
    assert require_gate("pld") == "pld"
    assert require_gate("rdp") == "rdp"
    with pytest.raises(PlanError, match="understate"):
        require_gate("gdp")
    with pytest.raises(PlanError, match="moments"):
        require_gate("moments")


def test_importing_accounting_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter();"
        "import pft_ray.accounting.calibration, pft_ray.accounting.curves;"
        "import pft_ray.accounting.filters, pft_ray.accounting.plan;"
        "took = time.perf_counter() - start;"
        "heavy = {'dp_accounting', 'scipy', 'torch', 'ray', 'numpy'};"
        "print(took, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    took, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(took) < 1.0  # 0.02 s on an idle machine
