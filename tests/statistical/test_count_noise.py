"""Both noises of an adaptive step: that of the gradients and that of the count.

False-positive rate of each assertion: 1e-9 (each key is fixed, so a pass is final).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian, assign_shares
from pft_ray.training.step import Alone, PrivateStep, StepKeys
from pft_ray.training.types import ClippedSum
from tests.statistical.noise_scale import is_normal_of_scale

pytestmark = pytest.mark.statistical
KEY = bytes(range(32))
SIGMA, SIGMA_B, CLIP_NORM = 1.2, 2.5, 0.5
NUM_STEPS, SIZE = 6000, 5


class Nothing:
    """Work without any unit; keeps what reaches the optimiser."""

    def __init__(self):
        self.grads = []

    def clipped_sum(self, positions, clip_norm):
        return ClippedSum(torch.zeros(SIZE, dtype=torch.float64), clip_norm, 0.0)

    def apply(self, grad):
        self.grads.append(grad.vector.numpy())


@pytest.fixture(scope="module", params=[1, 3])
def released(request):
    """(steps, size) noise of the gradients and (steps,) of the fraction, times q n."""
    rule = QuantileClipping(0.5, SIGMA_B, 1e-3, 1e3, learning_rate=1e-9)
    plan = Plan(
        unit="record",
        size=100,
        sample_rate=0.1,
        noise_multiplier=SIGMA,
        phases=(Phase("one", NUM_STEPS, "head", CLIP_NORM, "adaptive", rule),),
        fault_reserve=0,
        delta=1e-3,
        num_shares=request.param,
    )
    work, fractions = Nothing(), []
    digests = np.zeros((0, 16), dtype=np.uint8)
    mechanism = SampledGaussian.from_plan(plan)
    step = PrivateStep(plan, mechanism, work, digests, Alone())
    step.clip_norms.made = lambda index, fraction: fractions.append(fraction)
    shares = assign_shares(plan.num_shares, 1, 0)
    for number in range(NUM_STEPS):
        noise_keys = tuple(derive_key(KEY, "noise", number, i) for i, _ in shares)
        keys = StepKeys(1, number, KEY, shares, noise_keys)
        step.run(keys)
    batch = plan.expected_batch_size
    return np.stack(work.grads) * batch, (np.array(fractions) - 0.5) * batch


def test_gradients_carry_the_larger_noise(released):
    """sigma_g C, with sigma_g computed here: 1.368 C and not the event's 1.2 C."""
    sigma_g = (SIGMA**-2 - SIGMA_B**-2) ** -0.5
    assert sigma_g == pytest.approx(1.368, abs=1e-3)
    gradients, _ = released
    assert is_normal_of_scale(gradients, sigma_g * CLIP_NORM)
    assert not is_normal_of_scale(gradients, SIGMA * CLIP_NORM)
    assert not is_normal_of_scale(gradients, 0.7 * sigma_g * CLIP_NORM)
    assert not is_normal_of_scale(gradients, 1.3 * sigma_g * CLIP_NORM)


def test_the_count_carries_its_own_noise(released):
    """A unit moves the count by 1/2 at most: sigma_b / 2."""
    _, counts = released
    assert is_normal_of_scale(counts, SIGMA_B / 2)
    assert not is_normal_of_scale(counts, 0.7 * SIGMA_B / 2)
    assert not is_normal_of_scale(counts, 1.3 * SIGMA_B / 2)


def test_the_noises_are_independent(released):
    gradients, counts = released
    for coordinate in gradients.T:
        assert abs(np.corrcoef(coordinate, counts)[0, 1]) * math.sqrt(NUM_STEPS) < 6.2
