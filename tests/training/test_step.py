"""The six hops: noise is whole, batches do not depend on the number of workers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.quantile import JointNorm
from pft_ray.crypto import derive_key
from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import (
    SampledGaussian,
    assign_shares,
    gaussian,
    noise_share,
    share_std,
)
from pft_ray.training.step import Alone, PrivateStep, StepKeys, privatise
from pft_ray.training.types import ClippedSum, PrivateGrad
from tests.training.ranks import Ranks

KEY = bytes(range(32))
SIZE = 20_000


def make_plan(num_shares: int = 1, **changes) -> Plan:
    fields = {
        "unit": "record",
        "size": 1000,
        "sample_rate": 0.05,
        "noise_multiplier": 1.3,
        "phases": (Phase("one", 10, "head", 0.5), Phase("two", 10, "head", 2.0)),
        "fault_reserve": 2,
        "delta": 1e-5,
        "num_shares": num_shares,
        "grant_size": 5,
    }
    return Plan(**(fields | changes))


def make_keys(step: int, rank: int, world: int, num_shares: int, attempt=1) -> StepKeys:
    shares = assign_shares(num_shares, world, rank)
    return StepKeys(
        attempt,
        step,
        derive_key(KEY, "sample", attempt, step),
        shares,
        tuple(derive_key(KEY, "noise", attempt, step, i) for i, _ in shares),
    )


@dataclass
class CountingWork:
    """Each unit contributes a vector of norm C along its own coordinate."""

    owners: np.ndarray
    size: int = SIZE
    drawn: list[list[int]] = field(default_factory=list)
    grads: list[torch.Tensor] = field(default_factory=list)

    def clipped_sum(self, positions, clip_norm):
        self.drawn.append([int(self.owners[p]) for p in positions])
        vector = torch.zeros(self.size, dtype=torch.float64)
        for position in positions:
            vector[int(self.owners[position])] += clip_norm
        return ClippedSum(vector, clip_norm)

    def apply(self, grad):
        assert isinstance(grad, PrivateGrad)
        self.grads.append(grad.vector)


def digests(count: int) -> np.ndarray:
    rows = [derive_key(KEY, "unit", i)[:16] for i in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


def run_world(world: int, num_shares: int, steps: list[int], plan: Plan | None = None):
    """Runs the steps on ``world`` ranks; returns works and errors by rank."""
    plan = plan or make_plan(num_shares)
    units = digests(1000)
    group = Ranks(world)
    works, errors = [None] * world, [None] * world

    def rank_main(rank: int) -> None:
        mine = np.flatnonzero(np.arange(len(units)) % world == rank)
        works[rank] = CountingWork(mine)
        step = PrivateStep(
            plan,
            SampledGaussian.from_plan(plan),
            works[rank],
            units[mine],
            group.of(rank),
        )
        try:
            for number in steps:
                step.run(make_keys(number, rank, world, num_shares))
        except VoidStepError as error:
            errors[rank] = error

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return works, errors


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("world", "num_shares"), [(1, 1), (2, 2), (3, 3), (2, 5), (3, 7)]
)
def test_update_carries_exactly_the_plans_noise(world, num_shares):
    """Two-sided on 19,000 untouched coordinates: false-positive rate below 1e-9."""
    plan = make_plan(num_shares)
    works, errors = run_world(world, num_shares, [0])
    assert errors == [None] * world
    untouched = works[0].grads[0][1000:].numpy() * plan.expected_batch_size
    ratio = untouched.std() / (plan.noise_multiplier * 0.5)
    margin = 6.1 / np.sqrt(2 * len(untouched))
    assert 1 - margin < ratio < 1 + margin
    assert margin < 0.2, "the test must tell 0.7x and 1.3x from the true scale"


def test_noise_follows_the_clip_norm_of_its_own_phase():
    plan = make_plan(1)
    works, _ = run_world(1, 1, [9, 10])
    first, second = (
        g[1000:].numpy() * plan.expected_batch_size for g in works[0].grads
    )
    assert first.std() == pytest.approx(1.3 * 0.5, rel=0.05)
    assert second.std() == pytest.approx(1.3 * 2.0, rel=0.05)


def test_all_ranks_apply_the_same_update():
    works, _ = run_world(3, 3, [0, 1, 2])
    for first, *others in zip(*(w.grads for w in works), strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_batches_do_not_depend_on_the_number_of_workers():
    drawn = []
    for world in (1, 2, 3):
        works, _ = run_world(world, 3, list(range(6)))
        drawn.append([sorted(u for w in works for u in w.drawn[s]) for s in range(6)])
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(drawn[0])


def test_virtual_shares_give_the_same_update_for_every_number_of_workers():
    updates = [run_world(world, 3, [0])[0][0].grads[0] for world in (1, 2, 3)]
    for other in updates[1:]:
        torch.testing.assert_close(updates[0], other, rtol=0, atol=1e-6)


def test_a_rank_without_units_makes_every_step():
    plan = make_plan(1)
    work = CountingWork(np.zeros(0, dtype=np.int64))
    step = PrivateStep(plan, SampledGaussian.from_plan(plan), work, digests(0), Alone())
    for number in range(3):
        step.run(make_keys(number, 0, 1, 1))
    assert work.drawn == [[], [], []]
    assert len(work.grads) == 3
    assert float(work.grads[0].abs().sum()) > 0, "an empty step still carries noise"


def test_a_roster_short_of_noise_voids_the_step_before_anything_is_drawn():
    """Shares made for three ranks, a collective of two."""
    plan = make_plan(3)
    group = Ranks(2)
    works = [CountingWork(np.arange(0)), CountingWork(np.arange(0))]
    errors = []

    def rank_main(rank: int) -> None:
        step = PrivateStep(
            plan,
            SampledGaussian.from_plan(plan),
            works[rank],
            digests(0),
            group.of(rank),
        )
        try:
            step.run(make_keys(0, rank, 3, 3))
        except VoidStepError as error:
            errors.append(error)

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 2
    assert "2/3" in str(errors[0])
    assert works[0].grads == works[1].grads == []


def test_a_rank_without_a_share_voids_the_step_on_every_rank():
    """Its sum would leave the process without noise."""
    works, errors = run_world(3, 2, [0])
    assert all("no noise share" in str(error) for error in errors)
    assert [work.grads for work in works] == [[], [], []]


def test_a_share_held_twice_voids_the_step():
    plan = make_plan(2)

    class Twice(Alone):
        def gather(self, words):
            return [words, words]

    work = CountingWork(np.arange(0))
    step = PrivateStep(plan, SampledGaussian.from_plan(plan), work, digests(0), Twice())
    with pytest.raises(VoidStepError, match="repeated"):
        step.run(make_keys(0, 0, 2, 2))
    assert work.grads == []


def test_a_step_is_never_made_twice():
    plan = make_plan(1)
    work = CountingWork(np.arange(0))
    step = PrivateStep(plan, SampledGaussian.from_plan(plan), work, digests(0), Alone())
    step.run(make_keys(3, 0, 1, 1))
    for number in (3, 2):
        with pytest.raises(VoidStepError, match="again"):
            step.run(make_keys(number, 0, 1, 1))
    assert len(work.grads) == 1


def test_another_plan_on_one_rank_voids_the_step():
    group = Ranks(2)
    errors = []

    def rank_main(rank: int) -> None:
        plan = make_plan(2, noise_multiplier=1.3 if rank else 1.2)
        work = CountingWork(np.arange(0))
        step = PrivateStep(
            plan, SampledGaussian.from_plan(plan), work, digests(0), group.of(rank)
        )
        try:
            step.run(make_keys(0, rank, 2, 2))
        except VoidStepError as error:
            errors.append(error)

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 2


def test_keys_are_not_shown():
    keys = make_keys(0, 0, 1, 1)
    assert keys.sample_key.hex()[:8] not in repr(keys)
    assert repr(keys.sample_key) not in repr(keys)


def test_privatise_adds_to_the_sum_and_rounds_to_fp32():
    plan = make_plan(1)
    mechanism = SampledGaussian.from_plan(plan)
    keys = make_keys(0, 0, 1, 1)
    zero = ClippedSum(torch.zeros(64, dtype=torch.float64), 0.5)
    one = ClippedSum(torch.ones(64, dtype=torch.float64), 0.5)
    noise = privatise(zero, mechanism, keys, 0)
    both = privatise(one, mechanism, keys, 0)
    assert both.vector.dtype == torch.float32
    torch.testing.assert_close(
        both.vector - noise.vector, torch.ones(64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("num_shares", [1, 3])
@pytest.mark.parametrize("votes", [False, True])
def test_privatise_adds_whole_shares_however_they_are_cut(
    monkeypatch, size, num_shares, votes
):
    """Every coordinate gets its own noise, once, from each share."""
    plan = make_plan(num_shares)
    keys = make_keys(0, 0, 1, num_shares)
    total = torch.arange(size, dtype=torch.float64)
    joint = JointNorm(weight=0.3, norm=0.9) if votes else None
    std = share_std(plan.noise_multiplier, 0.9 if votes else 0.5, 1, num_shares)
    expected = [*total.tolist(), 0.3 * 5.0] if votes else total.tolist()
    expected = np.array(expected) + sum(
        noise_share(key, size + votes, std) for key in keys.noise_keys
    )
    monkeypatch.setattr(gaussian, "_CHUNK", 64)
    clipped = ClippedSum(total.clone(), 0.5, 5.0)
    found = privatise(clipped, SampledGaussian.from_plan(plan), keys, 0, joint)
    np.testing.assert_allclose(found.vector.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(clipped.vector, total), "the sum itself is left alone"


def test_without_a_share_nothing_is_sent():
    """A rank whose sum would leave it bare."""
    plan = make_plan(1)
    bare = StepKeys(1, 0, bytes(32), (), ())
    clipped = ClippedSum(torch.ones(4, dtype=torch.float64), 0.5)
    with pytest.raises(VoidStepError, match="no noise share"):
        privatise(clipped, SampledGaussian.from_plan(plan), bare, 0)
