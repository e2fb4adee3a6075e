"""A step whose C follows a quantile: one release, one event, one C on all ranks.

The mechanism, the collective and the header are those of every other step.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.crypto import derive_key
from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import SampledGaussian, assign_shares
from pft_ray.training.clip_norms import balance_of
from pft_ray.training.step import Alone, PrivateStep, StepKeys, privatise
from pft_ray.training.types import ClippedSum, PrivateGrad
from tests.training.ranks import Ranks

KEY = bytes(range(32))
NUM = 400
SIZE = 50
SIGMA, SIGMA_B = 1.3, 4.0
QUANTILE = QuantileClipping(0.5, SIGMA_B, 0.01, 100.0)


def make_plan(num_shares=1, **changes) -> Plan:
    fields = {
        "unit": "record",
        "size": NUM,
        "sample_rate": 0.25,
        "noise_multiplier": SIGMA,
        "phases": (
            Phase("moves", 6, "head", 8.0, "adaptive", QUANTILE),
            Phase("stays", 2, "head", 0.5),
            Phase("again", 4, "head", 0.25, "adaptive", QUANTILE),
        ),
        "fault_reserve": 2,
        "delta": 1e-5,
        "num_shares": num_shares,
    }
    return Plan(**(fields | changes))


def make_keys(step: int, rank=0, world=1, num_shares=1, attempt=1) -> StepKeys:
    shares = assign_shares(num_shares, world, rank)
    return StepKeys(
        attempt,
        step,
        derive_key(KEY, "sample", step),
        shares,
        tuple(derive_key(KEY, "noise", step, i) for i, _ in shares),
    )


def digests() -> np.ndarray:
    rows = [derive_key(KEY, "unit", i)[:16] for i in range(NUM)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


NORMS = np.random.default_rng(5).lognormal(0.0, 0.5, NUM)


@dataclass
class KnownNorms:
    """Unit i has a gradient of a known norm along coordinate i modulo the size."""

    owners: np.ndarray
    asked: list[float] = field(default_factory=list)
    balances: list[float] = field(default_factory=list)
    grads: list[torch.Tensor] = field(default_factory=list)

    def clipped_sum(self, positions, clip_norm):
        self.asked.append(clip_norm)
        units = self.owners[positions]
        vector = torch.zeros(SIZE, dtype=torch.float64)
        for unit in units:
            vector[unit % SIZE] += min(NORMS[unit], clip_norm)
        balance = balance_of(torch.from_numpy(NORMS[units]), clip_norm)
        self.balances.append(balance)
        return ClippedSum(vector, clip_norm, balance)

    def apply(self, grad):
        assert isinstance(grad, PrivateGrad)
        assert grad.vector.shape == (SIZE,), "the optimiser never sees the count"
        self.grads.append(grad.vector)


def make_step(plan, rank=0, world=1, collective=None):
    mine = np.flatnonzero(np.arange(NUM) % world == rank)
    return PrivateStep(
        plan,
        SampledGaussian.from_plan(plan),
        KnownNorms(mine),
        digests()[mine],
        collective or Alone(),
    )


def run_world(world, plan, change=None):
    """Runs the whole plan; returns the steps and errors of all ranks."""
    group = Ranks(world)
    steps = [make_step(plan, r, world, group.of(r)) for r in range(world)]
    errors = [None] * world

    def live(rank):
        try:
            for number in range(plan.num_steps):
                if change is not None:
                    change(rank, number, steps[rank])
                steps[rank].run(make_keys(number, rank, world, plan.num_shares))
        except VoidStepError as error:
            errors[rank] = error

    threads = [threading.Thread(target=live, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return steps, errors


def noise_of(step, size, scale):
    """What the mechanism draws at planned step ``step`` when there is one share."""
    key = derive_key(KEY, "noise", step, 0)
    pieces = SampledGaussian(0.25, SIGMA, 1).share(key, size, scale, 1)
    return np.concatenate([piece.copy() for piece in pieces])


def test_the_next_c_is_that_of_the_released_count():
    """Computed by hand from the exact votes and the very noise of the step."""
    step = make_step(make_plan())
    step.run(make_keys(0))
    weight = 8.0 * SIGMA / np.sqrt(SIGMA_B**2 - SIGMA**2)
    noise = noise_of(0, SIZE + 1, np.hypot(8.0, weight))[-1]
    share = 0.5 + (step.work.balances[0] + noise / weight) / (2 * 100.0)
    expected = 8.0 * np.exp(-0.2 * (share - 0.5))
    assert step.clip_norms.now[0] == pytest.approx(expected, rel=1e-6)
    assert step.clip_norms.used == [8.0]


def test_the_gradient_is_that_of_the_same_batch_and_noise():
    step = make_step(make_plan())
    step.run(make_keys(0))
    weight = 8.0 * SIGMA / np.sqrt(SIGMA_B**2 - SIGMA**2)
    noise = noise_of(0, SIZE + 1, np.hypot(8.0, weight))[:-1]
    drawn = step.mechanism.sample(make_keys(0).sample_key, digests())
    total = np.zeros(SIZE)
    for unit in drawn:
        total[unit % SIZE] += min(NORMS[unit], 8.0)
    torch.testing.assert_close(
        step.work.grads[0].double(),
        torch.from_numpy((total + noise) / 100.0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_every_phase_starts_at_its_own_c_and_uses_what_it_noted():
    step = make_step(make_plan())
    for number in range(12):
        step.run(make_keys(number))
    used = step.clip_norms.used
    assert step.work.asked == used, "what is clipped at is what is noted"
    assert used[0] == 8.0
    assert used[6:8] == [0.5, 0.5]
    assert used[8] == 0.25
    assert len(set(used[:6])) == 6
    assert len(set(used[8:])) == 4
    assert used[5] < 8.0, "nearly every norm lies below 8"
    assert used[-1] > 0.25, "nearly every norm lies above 0.25"


@pytest.mark.parametrize("world", [2, 3])
def test_workers_agree_on_c_and_their_number_does_not_matter(world):
    """With fixed virtual shares; the sums differ in the last fp32 bits only."""
    plan = make_plan(num_shares=3)
    (alone,), _ = run_world(1, plan)
    steps, errors = run_world(world, plan)
    assert errors == [None] * world
    for step in steps:
        assert step.clip_norms.used == steps[0].clip_norms.used
        assert step.clip_norms.now == steps[0].clip_norms.now
    np.testing.assert_allclose(
        steps[0].clip_norms.used, alone.clip_norms.used, rtol=1e-5
    )


def test_a_rank_with_another_c_voids_the_step():
    def change(rank, number, step):
        if (rank, number) == (1, 3):
            step.clip_norms.now[0] *= 1 + 1e-12

    steps, errors = run_world(2, make_plan(num_shares=2), change)
    assert all("another step" in str(error) for error in errors)
    assert [len(step.work.grads) for step in steps] == [3, 3]


def test_a_void_step_moves_no_c():
    class Twice(Alone):
        def gather(self, words):
            return [words, words]

    step = make_step(make_plan(num_shares=2), collective=Twice())
    with pytest.raises(VoidStepError):
        step.run(make_keys(0, num_shares=2))
    assert step.clip_norms.now[0] == 8.0
    assert step.clip_norms.used == []


def test_a_lineage_goes_on_from_its_state():
    whole = make_step(make_plan())
    for number in range(12):
        whole.run(make_keys(number))
    for cut in (3, 6, 9):
        first, second = make_step(make_plan()), make_step(make_plan())
        for number in range(cut):
            first.run(make_keys(number))
        second.clip_norms.load_state(first.clip_norms.state(), cut)
        for number in range(cut, 12):
            second.run(make_keys(number))
        assert second.clip_norms.used == whole.clip_norms.used
        assert second.clip_norms.now == whole.clip_norms.now


def test_a_phase_that_stays_releases_no_count():
    """Its share is as long as its gradient."""
    lengths = []

    class Watching(Alone):
        def reduce(self, share):
            lengths.append((len(share.vector), share.counted, share.clip_norm))
            return super().reduce(share)

    step = make_step(make_plan(), collective=Watching())
    for number in (0, 6):
        step.run(make_keys(number))
    assert lengths == [(SIZE + 1, True, 8.0), (SIZE, False, 0.5)]


def test_work_that_counts_nothing_is_no_work_for_an_adaptive_phase():
    plan = make_plan()
    joint = QUANTILE.joint(SIGMA, 8.0)
    clipped = ClippedSum(torch.zeros(SIZE, dtype=torch.float64), 8.0)
    with pytest.raises(ValueError, match="counted no votes"):
        privatise(clipped, SampledGaussian.from_plan(plan), make_keys(0), 0, joint)


def test_without_a_share_of_noise_no_balance_leaves():
    plan = make_plan()
    keys = make_keys(0, rank=1, world=2, num_shares=1)
    assert keys.shares == ()
    clipped = ClippedSum(torch.zeros(SIZE, dtype=torch.float64), 8.0, 3.0)
    joint = QUANTILE.joint(SIGMA, 8.0)
    with pytest.raises(VoidStepError, match="no noise share"):
        privatise(clipped, SampledGaussian.from_plan(plan), keys, 0, joint)
