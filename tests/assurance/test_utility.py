"""Utility from released counts: exact without noise, honest intervals with it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from pft_ray.accounting.plan import EvaluationPlan
from pft_ray.assurance.utility import Utility, evaluation_utility
from pft_ray.errors import InputError
from pft_ray.mechanisms import classification_counts, clipped_loss_sum

LOOKS = EvaluationPlan("classification", (60,), 1, 4.0, 1100, 3.0, 1e-5)
LOSSES = EvaluationPlan("causal_lm", (60,), 1, 4.0, 300, 3.0, 1e-5)


def binary_look(seed=0, size=1100, gap=3.0):
    """Scores of a fair classifier: (probabilities, targets)."""
    generator = np.random.default_rng(seed)
    targets = (generator.random(size) < 0.34).astype(int)
    logits = generator.normal(gap * (targets - 0.5), 1.2)
    one = 1 / (1 + np.exp(-logits))
    return np.stack([1 - one, one], axis=1), targets


def noise(generator, shape, sigma):
    """A stand-in for the discrete Gaussian; at these scales they look alike."""
    return np.rint(generator.normal(0, sigma, shape)).astype(int)


def exact_auroc(scores, targets):
    negative, positive = scores[targets == 0], scores[targets == 1]
    wins = stats.rankdata(np.concatenate([negative, positive]))[negative.size :].sum()
    wins -= positive.size * (positive.size + 1) / 2
    return wins / negative.size / positive.size


def test_without_noise_the_numbers_are_the_plain_ones():
    probabilities, targets = binary_look()
    counts = classification_counts(probabilities, targets, 20)
    found = evaluation_utility(counts.tolist(), LOOKS)
    assert list(found) == ["accuracy", "auroc"]
    right = ((probabilities[:, 1] >= 0.5) == targets).mean()
    assert found["accuracy"].private == pytest.approx(right)
    assert found["accuracy"].trivial == pytest.approx(1 - targets.mean())
    binned = np.floor(probabilities[:, 1] * 20)
    expected = exact_auroc(binned, targets)
    assert found["auroc"].private == pytest.approx(expected)
    assert found["auroc"].trivial == 0.5
    assert expected == pytest.approx(
        exact_auroc(probabilities[:, 1], targets), abs=0.003
    )


def test_without_noise_many_classes():
    generator = np.random.default_rng(1)
    targets = generator.integers(0, 4, 2000)
    scores = generator.random((2000, 4)) + np.eye(4)[targets] * 0.6
    counts = classification_counts(scores, targets, 20)
    found = evaluation_utility(counts.tolist(), LOOKS, num_classes=4)
    answers = scores.argmax(axis=1)
    recalls = [(answers[targets == c] == c).mean() for c in range(4)]
    assert list(found) == ["accuracy", "balanced_accuracy"]
    assert found["accuracy"].private == pytest.approx((answers == targets).mean())
    assert found["balanced_accuracy"].private == pytest.approx(np.mean(recalls))
    assert found["balanced_accuracy"].trivial == 0.25


def coverage(truth, estimates):
    """Share of intervals that hold the truth, and the mean of the estimates."""
    inside = [e.interval[0] <= truth <= e.interval[1] for e in estimates]
    return np.mean(inside), np.mean([e.private for e in estimates])


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [1.5, 4.0, 8.0])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_intervals_hold_the_noiseless_value_19_times_in_20(sigma, num_classes):
    """And the estimates are not biased. 2000 releases; false positives 1e-9.

    The intervals are of first order in the noise, which costs up to two points at the
    largest scale: coverage of 0.93 is asked for, and less than 0.985 so that an
    interval that is simply too wide fails too.
    """
    generator = np.random.default_rng(7)
    if num_classes == 2:
        exact = classification_counts(*binary_look(), 20)
    else:
        targets = generator.integers(0, 4, 1500)
        scores = generator.random((1500, 4)) + np.eye(4)[targets] * 0.6
        exact = classification_counts(scores, targets, 20)
    plan = dataclasses.replace(LOOKS, sigma=sigma)
    truth = evaluation_utility(exact.tolist(), plan, num_classes)
    releases = [
        evaluation_utility(
            (exact + noise(generator, exact.shape, sigma)).tolist(), plan, num_classes
        )
        for _ in range(2000)
    ]
    tail = 6.1 * math.sqrt(0.95 * 0.05 / 2000)
    for name, measure in truth.items():
        estimates = [release[name] for release in releases]
        share, mean = coverage(measure.private, estimates)
        assert 0.93 - tail <= share <= min(0.985 + tail, 1.0), name
        width = np.mean([e.interval[1] - e.interval[0] for e in estimates])
        assert abs(mean - measure.private) <= 0.1 * width, name
        spread = np.std([e.private for e in estimates])
        assert width / 2 / 1.96 == pytest.approx(spread, rel=0.25), name


def test_the_noisy_total_and_not_the_declared_one_divides():
    """A declared size that is 30 % off moves no accuracy."""
    counts = classification_counts(*binary_look(), 20).tolist()
    wrong = dataclasses.replace(LOOKS, size=1430)
    assert evaluation_utility(counts, wrong) == evaluation_utility(counts, LOOKS)


def test_the_table_is_held_to_the_leading_counts():
    """Noise that all wrong cells share is taken out by the count of wrong answers."""
    exact = classification_counts(*binary_look(), 20)
    shifted = exact.copy()
    wrong = np.zeros((2, 20), dtype=int)
    wrong[0, 10:] = wrong[1, :10] = 10
    shifted[2:] += wrong.ravel()
    before = evaluation_utility(exact.tolist(), LOOKS)["auroc"].private
    after = evaluation_utility(shifted.tolist(), LOOKS)["auroc"].private
    assert abs(after - before) < 0.02  # 0.14 without


@pytest.mark.parametrize("num_classes", [2, 3])
def test_counts_that_are_all_noise_say_nothing(num_classes):
    generator = np.random.default_rng(3)
    layout = classification_counts(
        np.zeros((0, num_classes)), np.zeros(0, dtype=int), 20
    )
    for _ in range(20):
        counts = noise(generator, layout.shape, 4.0).tolist()
        for measure in evaluation_utility(counts, LOOKS, num_classes).values():
            assert 0.0 <= measure.private <= 1.0
            assert measure.interval[0] <= measure.private <= measure.interval[1]
    empty = evaluation_utility([0] * layout.size, LOOKS, num_classes)
    assert all(measure.interval == (0.0, 1.0) for measure in empty.values())
    assert empty["accuracy"].trivial is None


def test_a_class_that_drowns_in_noise_has_no_auroc():
    probabilities, targets = binary_look()
    targets[:] = 0
    counts = classification_counts(probabilities, targets, 20).tolist()
    found = evaluation_utility(counts, LOOKS)["auroc"]
    assert found.private == 0.5
    assert found.interval == (0.0, 1.0)


def test_mean_loss_and_perplexity():
    losses = np.random.default_rng(0).gamma(8.0, 0.5, LOSSES.size)
    total = clipped_loss_sum(losses, LOSSES.loss_bound, LOSSES.loss_levels)
    found = evaluation_utility([total], LOSSES)
    assert list(found) == ["perplexity", "loss"]
    mean = np.clip(losses, 0, 10).mean()
    assert found["loss"].private == pytest.approx(mean, abs=1e-3)
    assert found["perplexity"].private == pytest.approx(math.exp(mean), rel=1e-3)
    # 1.96 * sigma * (bound / 2) / n, on either side
    half = 1.96 * 4.0 * 5.0 / LOSSES.size
    low, high = found["loss"].interval
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert found["perplexity"].interval == pytest.approx(
        (math.exp(low), math.exp(high))
    )


@pytest.mark.statistical
def test_loss_intervals_hold_the_noiseless_value_19_times_in_20():
    """5000 releases, false positives below 1e-9."""
    generator = np.random.default_rng(5)
    exact = clipped_loss_sum(generator.gamma(8.0, 0.5, 300), 10.0, 1024)
    truth = evaluation_utility([exact], LOSSES)["loss"].private
    releases = [
        evaluation_utility([exact + int(z)], LOSSES)["loss"]
        for z in noise(generator, 5000, 4.0 * 1024)
    ]
    share, mean = coverage(truth, releases)
    assert abs(share - 0.95) <= 6.1 * math.sqrt(0.95 * 0.05 / 5000)
    assert mean == pytest.approx(truth, abs=0.005)


def test_a_wrong_declared_size_moves_the_loss_towards_the_middle():
    """By its share of the distance from the middle, not of the loss itself."""
    total = clipped_loss_sum(np.full(330, 4.0), 10.0, 1024)
    found = evaluation_utility([total], LOSSES)["loss"].private
    assert found == pytest.approx(5.0 - 1.0 * 330 / 300, abs=5e-3)


def test_losses_stay_in_their_range():
    for total in (-(10**9), 10**9):
        found = evaluation_utility([total], LOSSES)
        assert 0.0 <= found["loss"].private <= 10.0
        assert found["loss"].interval[1] <= 10.0
        assert math.isfinite(found["perplexity"].interval[1])


def test_a_baseline_on_public_data_stands_beside():
    exact = classification_counts(*binary_look(gap=4.0), 20).tolist()
    noisy = classification_counts(*binary_look(), 20).tolist()
    found = evaluation_utility(noisy, LOOKS, baseline=exact)
    plain = evaluation_utility(exact, LOOKS)
    for name, measure in found.items():
        assert measure.non_private == plain[name].private
        assert measure.private == evaluation_utility(noisy, LOOKS)[name].private


def test_counts_of_another_length_are_refused():
    with pytest.raises(InputError, match="41 counts"):
        evaluation_utility([0] * 41, LOOKS)
    with pytest.raises(InputError, match="2 counts"):
        evaluation_utility([0, 0], LOSSES)


def test_as_json_without_absent_parts():
    short = Utility("loss", 1.0, (0.5, 1.5))
    assert json.loads(json.dumps(short.to_dict())) == {
        "metric": "loss",
        "private": 1.0,
        "interval": [0.5, 1.5],
    }
    full = Utility("accuracy", 0.9, (0.8, 1.0), trivial=0.6, non_private=0.95)
    assert full.to_dict()["trivial"] == 0.6
    assert full.to_dict()["non_private"] == 0.95
