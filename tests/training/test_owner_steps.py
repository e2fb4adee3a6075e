"""Steps of units with owners: rates, clip norms and noise are those of the plan."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.owners import Owner, Owners
from pft_ray.accounting.plan import Phase, Plan
from pft_ray.cluster.inputs import owner_shard
from pft_ray.cluster.step_keys import step_keys
from pft_ray.errors import PlanError
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.owner_sums import clipped_by_owner
from pft_ray.training.step import Alone, PrivateStep
from tests.training.ranks import Ranks
from tests.training.test_step import CountingWork, digests
from tests.training.tiny import loaded, random_table, spec_of, write_tiny

KEY = bytes(range(32))
NUM = 1000
NUMBERS = np.arange(NUM) % 3  # owner of each unit
BY_SAMPLE = Owners(
    "sample",
    (
        Owner("a", 334, 1.0, 0.02),
        Owner("b", 333, 2.0, 0.1),
        Owner("c", 333, 9.0, 0.5),
    ),
)
BY_SCALE = Owners(
    "scale",
    (
        Owner("a", 334, 1.0, 0.1, 0.5),
        Owner("b", 333, 2.0, 0.1, 1.0),
        Owner("c", 333, 9.0, 0.1, 1.5),
    ),
)


def make_plan(owners=BY_SAMPLE, num_shares=3) -> Plan:
    return Plan(
        unit="record",
        size=NUM,
        sample_rate=owners.expected_batch_size / NUM,
        noise_multiplier=1.3,
        phases=(Phase("one", 10, "head", 0.5), Phase("two", 300, "head", 2.0)),
        fault_reserve=2,
        delta=1e-5,
        num_shares=num_shares,
        owners=owners,
    )


def run_world(plan, world, steps, absent=()):
    """Runs the steps on ``world`` ranks; returns each rank's work."""
    units, group, works, errors = digests(NUM), Ranks(world), [None] * world, []

    def rank_main(rank):
        try:
            mine = owner_shard(NUMBERS, units, rank=rank, world=world, num_owners=3)
            mine = mine[~np.isin(NUMBERS[mine], absent)]
            works[rank] = CountingWork(mine)
            step = PrivateStep(
                plan,
                SampledGaussian.from_plan(plan),
                works[rank],
                units[mine],
                group.of(rank),
                unit_owners=NUMBERS[mine],
            )
            for number in steps:
                step.run(step_keys(plan, KEY, ("run", 1, number), rank, world))
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)
            group.barrier.abort()

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    return works


def drawn(works, step):
    """Units in a step, over all ranks; by scale a rank draws owner by owner."""
    return sorted(unit for work in works for unit in work.drawn[step])


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_batches_do_not_depend_on_the_number_of_workers(world):
    plan = make_plan(num_shares=7)
    one = run_world(plan, 1, range(4))
    many = run_world(plan, world, range(4))
    for step in range(4):
        assert drawn(one, step) == drawn(many, step)
        assert drawn(one, step)
    torch.testing.assert_close(one[0].grads[0], many[0].grads[0], rtol=0, atol=1e-6)


def test_units_of_an_owner_are_drawn_at_its_rate():
    """Two-sided, at six deviations of the binomial."""
    steps = range(10, 210)
    plan = make_plan()
    works = run_world(plan, 3, steps)
    for number, owner in enumerate(BY_SAMPLE.members):
        trials = len(steps) * int((number == NUMBERS).sum())
        count = sum(
            int((NUMBERS[drawn(works, step)] == number).sum())
            for step in range(len(steps))
        )
        deviation = np.sqrt(trials * owner.sample_rate * (1 - owner.sample_rate))
        assert abs(count - trials * owner.sample_rate) < 6 * deviation
        assert 6 * deviation < 0.2 * trials * owner.sample_rate


@pytest.mark.statistical
@pytest.mark.parametrize("owners", [BY_SAMPLE, BY_SCALE], ids=["sample", "scale"])
@pytest.mark.parametrize("world", [1, 3])
def test_the_noise_is_that_of_c_and_the_normaliser_is_public(owners, world):
    """Two-sided on 19,000 untouched coordinates: false-positive rate below 1e-9."""
    plan = make_plan(owners)
    works = run_world(plan, world, [0, 10])
    for grad, clip_norm in zip(works[0].grads, (0.5, 2.0), strict=True):
        noise = grad[NUM:].numpy() * sum(
            owner.sample_rate * owner.size for owner in owners.members
        )
        ratio = noise.std() / (1.3 * clip_norm)
        assert abs(ratio - 1) < 6.1 / np.sqrt(2 * len(noise)) < 0.05


@pytest.mark.parametrize("owners", [BY_SAMPLE, BY_SCALE], ids=["sample", "scale"])
def test_a_unit_moves_the_sum_by_the_clip_norm_of_its_owner(owners):
    work = CountingWork(np.arange(NUM))
    places = np.array([0, 1, 2, 5, 9])
    total = clipped_by_owner(work, places, 2.0, NUMBERS, owners)
    expected = [2.0 * owners.members[p % 3].clip_scale for p in places]
    assert total.vector[places].tolist() == expected
    assert total.clip_norm == 2.0, "the noise follows C"
    nothing = clipped_by_owner(work, places[:0], 2.0, NUMBERS, owners)
    assert float(nothing.vector.abs().sum()) == 0


def test_an_absent_owner_contributes_zero_and_the_normaliser_stays():
    plan = make_plan()
    whole, rest = run_world(plan, 3, [0, 1]), run_world(plan, 3, [0, 1], absent=(1,))
    for step in range(2):
        there = [unit for unit in drawn(whole, step) if NUMBERS[unit] != 1]
        assert drawn(rest, step) == there
        moved = (whole[0].grads[step] - rest[0].grads[step]) * plan.expected_batch_size
        gone = [unit for unit in drawn(whole, step) if NUMBERS[unit] == 1]
        assert gone
        expected = torch.zeros_like(moved)
        expected[gone] = 0.5
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_units_without_owners_or_keys_are_refused():
    plan = make_plan()
    mechanism = SampledGaussian.from_plan(plan)
    units = digests(NUM)
    with pytest.raises(PlanError, match="sample_owners"):
        mechanism.sample(KEY, units)
    with pytest.raises(PlanError, match="no key"):
        mechanism.sample_owners(((0, KEY), (2, KEY)), units, NUMBERS)
    work = CountingWork(np.arange(NUM))
    for numbers in (None, NUMBERS[:-1]):
        step = PrivateStep(plan, mechanism, work, units, Alone(), unit_owners=numbers)
        with pytest.raises(PlanError, match="owners"):
            step.run(step_keys(plan, KEY, ("run", 1, 0), 0, 1))
    assert work.drawn == work.grads == []


def test_the_mechanism_is_charged_for_the_owner_that_loses_most():
    for owners in (BY_SAMPLE, BY_SCALE):
        plan = make_plan(owners)
        assert SampledGaussian.from_plan(plan).event == plan.step_event


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_shards_partition_the_units_and_keep_owners_apart(world, numbers):
    owners, units = np.asarray(numbers), digests(len(numbers))
    shards = [
        owner_shard(owners, units, rank=rank, world=world, num_owners=4)
        for rank in range(world)
    ]
    everything = np.concatenate(shards)
    assert sorted(everything.tolist()) == list(range(len(numbers)))
    if world >= 4:
        assert all(len(set(owners[shard].tolist())) <= 1 for shard in shards)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per_layer"])
def test_leaving_a_unit_out_moves_a_real_sum_by_at_most_its_owners_norm(tiny, clipping):
    clip_norm, size = 0.05, 18
    table = random_table(size, seed=3)
    numbers = np.arange(size) % 3
    model = loaded(spec_of(tiny, "bert", lora=True), torch.float32)
    work = LocalWork(model, table, max_micro_batch=5)
    work.start_phase("adapter+head", OptimizerSpec("sgd", 0.1, 4), clipping)
    everyone = np.arange(size)
    whole = clipped_by_owner(work, everyone, clip_norm, numbers, BY_SCALE).vector
    for removed in range(size):
        kept = np.delete(everyone, removed)
        rest = clipped_by_owner(work, kept, clip_norm, numbers, BY_SCALE).vector
        most = clip_norm * BY_SCALE.members[removed % 3].clip_scale
        moved = float((whole - rest).norm())
        assert moved <= most * (1 + 1e-6)
        assert moved > (0.95 if clipping != "per_layer" else 0.5) * most
