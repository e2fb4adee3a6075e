"""Steps of independent workers: draws, noise and normaliser are those of n events."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from pft_ray.accounting.events import PoissonGaussian
from pft_ray.accounting.plan import Phase, Plan
from pft_ray.cluster.step_keys import step_keys
from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.step import Alone, PrivateStep
from tests.training.ranks import Ranks
from tests.training.test_step import CountingWork, digests

KEY = bytes(range(32))
NUM, MANY = 1000, 3
PLAN = Plan(
    unit="record",
    size=NUM,
    sample_rate=0.05,
    noise_multiplier=1.3,
    phases=(Phase("one", 300, "head", 0.5),),
    fault_reserve=2,
    delta=1e-5,
    num_shares=MANY,
    independent_workers=MANY,
)


def run_world(world, steps):
    """Every rank holds all units, and draws once for each worker that it plays."""
    units, group, works = digests(NUM), Ranks(world), [None] * world

    def rank_main(rank):
        works[rank] = CountingWork(np.arange(NUM))
        step = PrivateStep(
            PLAN, SampledGaussian.from_plan(PLAN), works[rank], units, group.of(rank)
        )
        for number in steps:
            step.run(step_keys(PLAN, KEY, ("run", 1, number), rank, world))

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return works


@pytest.mark.statistical
@pytest.mark.parametrize("world", [1, 3])
def test_each_worker_adds_the_whole_noise(world):
    """Two-sided on 19,000 untouched coordinates: false-positive rate below 1e-9."""
    (grad,) = run_world(world, [0])[0].grads
    noise = grad[NUM:].numpy() * MANY * 0.05 * NUM
    ratio = noise.std() / (1.3 * 0.5 * np.sqrt(MANY))
    assert abs(ratio - 1) < 6.1 / np.sqrt(2 * len(noise)) < 0.05
    assert SampledGaussian.from_plan(PLAN).event == PoissonGaussian(0.05, 1.3)


def test_workers_draw_independently_of_one_another():
    """Two-sided: units in two workers' batches are as many as chance makes them."""
    (work,) = run_world(1, range(200))
    batches = [set(drawn) for drawn in work.drawn]
    assert len(batches) == 200 * MANY
    sizes = sum(map(len, batches))
    expected = 200 * MANY * NUM * 0.05
    assert abs(sizes - expected) < 6 * np.sqrt(expected * 0.95)
    both = sum(
        len(batches[start + i] & batches[start + j])
        for start in range(0, len(batches), MANY)
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    chance = 200 * 3 * NUM * 0.05**2
    assert abs(both - chance) < 6 * np.sqrt(chance)


@pytest.mark.parametrize("world", [2, 3])
def test_the_update_does_not_depend_on_the_number_of_ranks(world):
    one, many = run_world(1, [0, 1]), run_world(world, [0, 1])
    for mine, other in zip(one[0].grads, many[0].grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    drawn = [sorted(map(tuple, work.drawn)) for work in (one[0],)]
    assert drawn == [sorted(tuple(d) for work in many for d in work.drawn)]


def test_a_rank_that_plays_no_worker_voids_the_step():
    work = CountingWork(np.arange(NUM))
    step = PrivateStep(
        PLAN, SampledGaussian.from_plan(PLAN), work, digests(NUM), Alone()
    )
    with pytest.raises(VoidStepError, match="no independent worker"):
        step.run(step_keys(PLAN, KEY, ("run", 1, 0), 3, 4))
    assert work.grads == []
