"""Steps of a roster that is short from its start: whole noise, nobody else's units."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from pft_ray.accounting.tolerance import noise_inflation
from pft_ray.cluster.inputs import owner_shard
from pft_ray.cluster.step_keys import step_keys
from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.step import PrivateStep
from tests.statistical.noise_scale import is_normal_of_scale
from tests.training.ranks import Ranks
from tests.training.test_owner_steps import BY_SAMPLE, KEY, NUM, NUMBERS, make_plan
from tests.training.test_step import CountingWork, digests

SHARES = 6
SIZE = 20_000


class Still(CountingWork):
    """Contributes nothing, so that what is applied is noise alone."""

    def clipped_sum(self, positions, clip_norm):
        clipped = super().clipped_sum(positions, clip_norm)
        return replace(clipped, vector=clipped.vector.new_zeros(SIZE))


def run_ranks(plan, there, number=10, *, roster=None, work=CountingWork):
    """Makes one step on the first ``there`` ranks; returns their works and errors.

    ``roster`` is how many ranks the attempt was opened for.
    """
    units, group, works, errors = digests(NUM), Ranks(there), [], []

    def rank_main(rank, mine):
        step = PrivateStep(
            plan,
            SampledGaussian.from_plan(plan),
            works[rank],
            units[mine],
            group.of(rank),
            unit_owners=NUMBERS[mine],
        )
        try:
            step.run(step_keys(plan, KEY, ("run", 1, number), rank, roster or there))
        except VoidStepError as error:
            errors.append(error)

    threads = []
    for rank in range(there):
        mine = owner_shard(NUMBERS, units, rank=rank, world=SHARES, num_owners=3)
        works.append(work(mine))
        threads.append(threading.Thread(target=rank_main, args=(rank, mine)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return works, errors


def applied(plan, there):
    """The noise of one step of nothing, as every rank applies it."""
    works, errors = run_ranks(plan, there, work=Still)
    assert errors == []
    first = works[0].grads[0].numpy()
    for work in works[1:]:
        assert np.array_equal(work.grads[0].numpy(), first)
    return first * plan.expected_batch_size


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_short_roster_carries_exactly_the_plans_noise(missing):
    """Two-sided, with t of six shares absent."""
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=missing)
    scale = 1.3 * 2.0  # sigma, and C of the phase of step 10
    noise = applied(plan, SHARES - missing)
    assert is_normal_of_scale(noise, scale)
    assert not is_normal_of_scale(noise, 0.7 * scale)
    assert not is_normal_of_scale(noise, 1.3 * scale)


def test_a_full_roster_carries_more_by_the_stated_factor():
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=2)
    scale = 1.3 * 2.0 * noise_inflation(plan)
    assert noise_inflation(plan) == pytest.approx(1.2247, abs=1e-4)
    noise = applied(plan, SHARES)
    assert is_normal_of_scale(noise, scale)
    assert not is_normal_of_scale(noise, 1.3 * 2.0), "the plan's own is less"
    between = 1.3 * 2.0 * np.sqrt(5 / 4)
    assert is_normal_of_scale(applied(plan, 5), between)


def test_one_absence_too_many_is_void_and_draws_nothing():
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=2)
    works, errors = run_ranks(plan, 3)
    assert len(errors) == 3
    assert "3/4 of the noise" in str(errors[0])
    assert all(work.grads == [] for work in works)
    works, errors = run_ranks(make_plan(num_shares=SHARES), 5, roster=6)
    assert len(errors) == 5, "without tolerance one absence is void, too"
    assert all(work.grads == [] for work in works)


def test_a_rank_lost_after_the_roster_was_fixed_voids_the_step():
    """Enough noise would be there, but the one that dropped out was counted on."""
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=2)
    works, errors = run_ranks(plan, 5, roster=6)
    assert len(errors) == 5
    assert "5 of the attempt's 6 ranks" in str(errors[0])
    assert all(work.grads == [] for work in works)
    works, errors = run_ranks(plan, 5)
    assert errors == []
    assert len(works[0].grads) == 1


def test_who_is_there_draws_the_same_units_as_in_a_full_roster():
    """Units of those who are absent are in no step; nobody takes them over."""
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=2)
    full, _ = run_ranks(plan, SHARES)
    short, _ = run_ranks(plan, 4)
    assert [w.drawn for w in short] == [w.drawn for w in full[:4]]
    lost = [unit for work in full[4:] for step in work.drawn for unit in step]
    assert lost, "the absent had units in this step"
    held = {unit for work in short for step in work.drawn for unit in step}
    assert not held & set(lost)
    rates = [owner.sample_rate * owner.size for owner in BY_SAMPLE.members]
    assert plan.expected_batch_size == pytest.approx(sum(rates)), "it stays"


@pytest.mark.parametrize("there", [2, 4])
def test_each_rank_of_a_short_roster_has_one_share_and_its_own_owners_key(there):
    """Also where fewer ranks than owners are there."""
    plan = replace(make_plan(num_shares=SHARES), tolerate_missing=SHARES - there)
    full = [step_keys(plan, KEY, ("run", 1, 0), rank, SHARES) for rank in range(SHARES)]
    short = [step_keys(plan, KEY, ("run", 1, 0), r, there) for r in range(there)]
    for one, other in zip(short, full, strict=False):
        assert (one.shares, one.noise_keys) == (other.shares, other.noise_keys)
        assert one.part_keys == other.part_keys
    assert [keys.shares for keys in full] == [((i, 1),) for i in range(SHARES)]
