"""Counts for utility: sensitivity by brute force, totality, the exact sampler.

The law of the noise is tested under tests/statistical.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.events import DiscreteGaussian, Repeat
from pft_ray.accounting.plan import EvaluationPlan
from pft_ray.crypto import aes_keystream, derive_key
from pft_ray.errors import PlanError
from pft_ray.mechanisms import (
    ClassificationLayout,
    classification_counts,
    clipped_loss_sum,
    counts,
    discrete_gaussian,
    noisy_counts,
)

KEY = bytes(range(32))
ANY = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def looks(draw):
    """Scores and classes of a few units, faulty ones among them."""
    num_classes = draw(st.integers(2, 4))
    num_units = draw(st.integers(1, 8))
    score = st.one_of(st.floats(0, 1), ANY)
    scores = draw(
        st.lists(
            st.lists(score, min_size=num_classes, max_size=num_classes),
            min_size=num_units,
            max_size=num_units,
        )
    )
    classes = st.integers(-2, num_classes + 1)
    targets = draw(st.lists(classes, min_size=num_units, max_size=num_units))
    return np.array(scores), np.array(targets)


@given(looks(), st.sampled_from([2, 4, 20]))
@settings(max_examples=200, deadline=None)
def test_a_unit_adds_one_to_one_count_of_each_group(look, num_bins):
    """Brute force: remove each unit; both groups change by at most 1 in one count."""
    scores, targets = look
    whole = classification_counts(scores, targets, num_bins)
    for index in range(len(targets)):
        rest = np.delete(np.arange(len(targets)), index)
        change = whole - classification_counts(scores[rest], targets[rest], num_bins)
        for group in (change[:2], change[2:]):
            assert group.min() >= 0
            assert group.sum() in (0, 1)
        assert change[:2].sum() == change[2:].sum()


def test_the_price_of_a_look_is_the_price_of_its_groups():
    looks = EvaluationPlan("classification", (1,), 0, 3.0, 100, 1.0, 1e-5)
    assert looks.look_event == Repeat(DiscreteGaussian(3.0, 1), 2)


@given(
    losses=st.lists(ANY, min_size=1, max_size=6),
    bound=st.floats(0.1, 50.0),
    levels=st.integers(1, 4096),
)
@settings(max_examples=200, deadline=None)
def test_a_unit_moves_the_loss_sum_by_at_most_levels(losses, bound, levels):
    whole = clipped_loss_sum(np.array(losses), bound, levels)
    for index in range(len(losses)):
        rest = np.delete(np.array(losses), index)
        change = whole - clipped_loss_sum(rest, bound, levels)
        assert abs(change) <= levels
    looks = EvaluationPlan(
        "causal_lm", (1,), 0, 3.0, 100, 1.0, 1e-5, loss_levels=levels
    )
    assert looks.look_event == DiscreteGaussian(3.0 * levels, levels)


def test_two_classes_by_hand():
    scores = [[0.9, 0.1], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.51, 0.49]]
    targets = [0, 1, 1, 1, 0]
    found = classification_counts(np.array(scores), np.array(targets), 4)
    #     right, wrong | class 0: 4 bins | class 1: 4 bins
    assert found.tolist() == [4, 1, 1, 1, 0, 0, 1, 0, 1, 1]
    assert found.dtype == np.int64


def test_many_classes_by_hand():
    scores = np.eye(3)[[0, 1, 1, 2]]
    found = classification_counts(scores, np.array([0, 1, 2, 2]), 20)
    assert found.tolist() == [3, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]


@given(looks())
@settings(max_examples=100, deadline=None)
def test_right_answers_are_the_right_cells(look):
    """The two groups describe the same units, so they can be held together."""
    scores, targets = look
    layout = ClassificationLayout(scores.shape[1], 20)
    found = classification_counts(scores, targets, 20)
    table = found[2:].reshape(layout.num_classes, layout.num_columns)
    assert found.shape == (layout.length,)
    assert table[layout.correct_cells].sum() == found[0]
    assert table[~layout.correct_cells].sum() == found[1]
    assert found[:2].sum() == ((targets >= 0) & (targets < scores.shape[1])).sum()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_faulty_score_lands_in_the_lowest_bin(bad):
    found = classification_counts(np.array([[0.2, bad], [bad, 0.9]]), np.array([1, 0]))
    assert found[0] == 1
    assert found[1] == 1
    assert found[2] == 1  # class 0, bin 0
    assert found[22] == 1  # class 1, bin 0


def test_scores_beyond_the_unit_interval_are_clipped():
    found = classification_counts(np.array([[0, 1.5], [0, -2.0]]), np.array([1, 1]), 2)
    assert found.tolist() == [1, 1, 0, 0, 1, 1]


def test_the_threshold_is_a_bin_edge():
    """A score just below one half answers 0 and is counted below the middle."""
    for num_bins in (2, 4, 6, 14, 20, 98, 200):
        scores = np.array([[0.5, 0.5], [0.5, math.nextafter(0.5, 0)]])
        found = classification_counts(scores, np.array([1, 1]), num_bins)
        row = found[2 + num_bins :]
        assert row[: num_bins // 2].sum() == 1
        assert row[num_bins // 2 :].sum() == 1


def test_no_units():
    assert classification_counts(np.zeros((0, 2)), np.zeros(0, int)).sum() == 0
    assert clipped_loss_sum(np.zeros(0), 10.0, 1024) == 0


@pytest.mark.parametrize(
    ("scores", "targets"),
    [(np.zeros(3), np.zeros(3)), (np.zeros((3, 2)), np.zeros(2))],
)
def test_shapes_that_do_not_fit(scores, targets):
    with pytest.raises(ValueError, match="shape"):
        classification_counts(scores, targets)


@pytest.mark.parametrize(("num_classes", "num_bins"), [(1, 20), (2, 19), (2, 0)])
def test_layouts_that_are_refused(num_classes, num_bins):
    with pytest.raises(PlanError, match="classes"):
        ClassificationLayout(num_classes, num_bins)


def test_loss_sum_by_hand():
    losses = np.array([0.0, 5.0, 10.0, 20.0, -3.0, 2.5])
    #                  -8    0    8     8     -8    -4
    assert clipped_loss_sum(losses, 10.0, 8) == -4
    faulty = np.array([math.nan, math.inf, -math.inf])
    assert clipped_loss_sum(faulty, 10.0, 8) == 8


@given(st.floats(0, 10.0))
def test_loss_levels_are_as_fine_as_they_say(loss):
    step = clipped_loss_sum(np.array([loss]), 10.0, 1024) / 1024
    assert abs(5.0 * (1 + step) - loss) <= 5.0 / 1024 / 2 + 1e-9


def test_integers_below_a_bound_against_a_reference():
    """Whole words, most significant first, cut to the bits needed, rejected above."""
    words = aes_keystream(derive_key(KEY, "discrete-gaussian", 0), 4096).tolist()
    source = counts._SecureIntegers(KEY)
    expected = []
    while len(expected) < 50:
        value = (words.pop() << 64 | words.pop()) >> (128 - 70)
        if value < 3**44:
            expected.append(value)
    assert [source.below(3**44) for _ in range(50)] == expected
    assert source.below(1) == 0


def test_streams_go_on_under_further_keys(monkeypatch):
    """An exhausted stream is followed by another key's, never by itself."""
    monkeypatch.setattr(counts, "_STREAM_WORDS", 8)
    keys = []

    def spy(key, size):
        keys.append(key)
        return aes_keystream(key, size)

    monkeypatch.setattr(counts, "aes_keystream", spy)
    discrete_gaussian(KEY, 3.0, 50)
    assert len(keys) > 10
    assert len(set(keys)) == len(keys)
    assert KEY not in keys


def test_each_bound_is_uniform():
    source = counts._SecureIntegers(KEY)
    draws = [source.below(3) for _ in range(9000)]
    assert min(np.bincount(draws)) > 2700  # 3000 expected, 6.7 deviations


@pytest.mark.parametrize("ratio", [(0, 1), (1, 3), (1, 1), (7, 2)])
def test_exponential_coins(ratio):
    source = counts._SecureIntegers(derive_key(KEY, "coin", ratio[0]))
    heads = sum(counts._bernoulli_exp(source, *ratio) for _ in range(20_000))
    rate = math.exp(-ratio[0] / ratio[1])
    assert abs(heads / 20_000 - rate) <= 6.2 * math.sqrt(rate * (1 - rate) / 20_000)


def test_draws_depend_on_the_key_alone():
    one = discrete_gaussian(KEY, 5.0, 200)
    assert one.dtype == np.int64
    assert (discrete_gaussian(KEY, 5.0, 200) == one).all()
    assert (discrete_gaussian(bytes(32), 5.0, 200) != one).any()
    assert (discrete_gaussian(KEY, 5.0, 100) == one[:100]).all()
    assert discrete_gaussian(KEY, 5.0, 0).shape == (0,)


def test_noise_is_added_to_the_counts():
    exact = np.array([10, 0, 5])
    noisy = noisy_counts(KEY, exact, 2.0)
    assert (noisy - exact == discrete_gaussian(KEY, 2.0, 3)).all()
    assert noisy_counts(KEY, [10, 0, 5], 2.0).tolist() == noisy.tolist()


@pytest.mark.parametrize("bad", [np.array([1.5]), np.array([[1, 2]]), np.array(3)])
def test_only_integer_counts_are_noised(bad):
    with pytest.raises(ValueError, match="integers"):
        noisy_counts(KEY, bad, 2.0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_scales_that_are_refused(sigma):
    with pytest.raises(PlanError, match="sigma"):
        discrete_gaussian(KEY, sigma, 1)


def test_a_tiny_scale_is_exact_too():
    assert discrete_gaussian(KEY, 1e-3, 100).tolist() == [0] * 100
