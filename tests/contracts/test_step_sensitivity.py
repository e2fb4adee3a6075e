"""One record more or less moves the sum of a whole step by at most C.

The step as ranks make it, with real models in fp32: shards, micro-batches, kept
prefixes. Leaving a record out moves every later record to another place in its
micro-batch, so this is also about what batch-mates do to one another in the last bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.quantile import JointNorm, QuantileClipping
from pft_ray.cluster.inputs import shard_of
from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian, assign_shares
from pft_ray.training import dropout
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.step import StepKeys, privatise
from tests.training.tiny import loaded, random_table, spec_of

NUM = 24
SLACK = 1e-6
CASES = [
    ("bert", "head"),
    ("bert", "adapter+head"),
    ("bert", "all"),
    ("gpt2-tied", "all"),
    ("llama", "adapter"),
]
# Masks are a record's own, and in bf16 a row of a product is what it is alone.
OPTIONS = [
    ("bert", "all", {"dropout": True}),
    ("gpt2-tied", "all", {"dropout": True, "autocast": True}),
    ("bert", "adapter+head", {"autocast": True}),
    ("llama", "adapter", {"autocast": True}),
]


class Counting:
    """The plan's mechanism without noise; counts what would be drawn."""

    def __init__(self) -> None:
        self.drawn: Counter[bytes] = Counter()

    def share(self, noise_key, size, clip_norm, numerator):
        self.drawn[noise_key] += 1
        return iter([np.zeros(size)])


def make_plan(world: int, clip_norm: float, *, adaptive: bool = False) -> Plan:
    phase = Phase("one", 4, "head", clip_norm)
    if adaptive:
        rule = QuantileClipping(0.5, 1.5, clip_norm / 8, clip_norm * 8)
        phase = Phase("one", 4, "head", clip_norm, "adaptive", rule)
    return Plan(
        unit="record",
        size=NUM,
        sample_rate=0.5,
        noise_multiplier=1.0,
        phases=(phase,),
        fault_reserve=0,
        delta=1e-3,
        num_shares=world,
    )


class Step:
    """One step of all ranks over a table, without noise."""

    def __init__(self, folder, kind, trainable, plan, micro=5, **options) -> None:
        lora = "adapter" in trainable
        spec = spec_of(folder, kind, lora=lora, layers=(1,) if lora else None)
        self._spec = replace(spec, **options)
        self._trainable, self._plan, self._micro = trainable, plan, micro
        self.counting = Counting()

    def run(self, table, step: int) -> tuple[torch.Tensor, set[bytes]]:
        """Returns the sum that would be noised, and the digests that are in it."""
        plan, world = self._plan, self._plan.num_shares
        phase = plan.phases[0]
        clip_norm = phase.clip_norm
        total, drawn = None, set()
        for rank in range(world):
            shard = table.take(shard_of(table.digests, rank, world))
            work = LocalWork(
                loaded(self._spec, torch.float32), shard, max_micro_batch=self._micro
            )
            work.start_phase(self._trainable, OptimizerSpec("sgd", 0.1, 4))
            keys = keys_of(step, rank, world)
            mechanism = SampledGaussian.from_plan(plan)
            positions = mechanism.sample(keys.sample_key, shard.digests)
            clipped = work.clipped_sum(positions, clip_norm)
            assert work.num_faulty == 0
            share = privatise(clipped, self.counting, keys, 0, joint_of(plan))
            part = clipped.vector
            if phase.quantile is not None:
                last = joint_of(plan).weight * clipped.balance
                part = torch.cat([part, torch.tensor([last], dtype=torch.float64)])
            torch.testing.assert_close(share.vector, part.float(), rtol=0, atol=0)
            drawn |= {shard.digests[place].tobytes() for place in positions}
            total = part if total is None else total + part
        return total, drawn


def joint_of(plan: Plan) -> JointNorm | None:
    phase = plan.phases[0]
    if phase.quantile is None:
        return None
    return phase.quantile.joint(plan.noise_multiplier, phase.clip_norm)


def keys_of(step: int, rank: int, world: int) -> StepKeys:
    key = bytes(range(32))
    shares = assign_shares(world, world, rank)
    return StepKeys(
        attempt=1,
        step=step,
        sample_key=derive_key(key, "sample", step),
        shares=shares,
        noise_keys=tuple(derive_key(key, "noise", step, i) for i, _ in shares),
    )


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("kind", "trainable"), CASES)
def test_leaving_any_record_out_moves_the_step_by_at_most_c(
    tiny_folders, kind, trainable, world
):
    check_bound(Step, tiny_folders[kind], kind, trainable, world)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("kind", "trainable", "options"), OPTIONS)
def test_the_bound_holds_with_dropout_and_in_bf16(
    tiny_folders, monkeypatch, kind, trainable, options, world
):
    monkeypatch.setattr(dropout.secrets, "token_bytes", lambda n: b"s" * n)
    step = partial(Step, **options)
    check_bound(step, tiny_folders[kind], kind, trainable, world)


def check_bound(make_step, folder, kind, trainable, world):
    clip_norm = 0.05
    plan = make_plan(world, clip_norm)
    step = make_step(folder, kind, trainable, plan)
    table = random_table(NUM, seed=3)
    whole, drawn = step.run(table, 0)
    assert 5 < len(drawn) < NUM - 3
    moved = []
    for removed in range(0, NUM, 2):
        rest, fewer = step.run(table.take(np.delete(np.arange(NUM), removed)), 0)
        gone = table.digests[removed].tobytes()
        assert fewer == drawn - {gone}
        distance = float((whole - rest).norm())
        if gone in drawn:
            moved.append(distance / clip_norm)
            assert distance <= clip_norm * (1 + SLACK)
        else:
            assert distance <= clip_norm * SLACK, "the others stay where they were"
    assert max(moved) > 0.99, "clipping is at work: the bound is reached"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("place", [0.05, 0.7])
def test_gradient_and_vote_move_by_at_most_the_joint_norm(tiny_folders, place, world):
    """A C that some norms lie near to: whoever stays keeps its vote to a millionth."""
    table = random_table(NUM, seed=3)
    plan = make_plan(world, place, adaptive=True)
    joint = joint_of(plan)
    step = Step(tiny_folders["bert"], "bert", "adapter+head", plan)
    whole, drawn = step.run(table, 0)
    assert set(step.counting.drawn.values()) == {1}, "one draw for sum and count"
    moved = []
    for removed in range(0, NUM, 2):
        rest, _ = step.run(table.take(np.delete(np.arange(NUM), removed)), 0)
        distance = float((whole - rest).norm())
        if table.digests[removed].tobytes() in drawn:
            moved.append(distance / joint.norm)
            assert distance <= joint.norm * (1 + SLACK)
        else:
            assert distance <= joint.norm * SLACK
    assert max(moved) > (0.99 if place == 0.05 else 0.7)
    assert max(moved) * joint.norm > place * 1.01, "C alone would be too small"


def test_every_share_is_drawn_once_in_every_step(tiny_folders):
    plan = make_plan(2, 0.05)
    step = Step(tiny_folders["bert"], "bert", "head", plan)
    for number in range(3):
        step.run(random_table(NUM, seed=3), number)
    assert len(step.counting.drawn) == 3 * plan.num_shares
    assert set(step.counting.drawn.values()) == {1}


@pytest.mark.parametrize("trainable", ["head", "adapter+head"])
@pytest.mark.parametrize("micro", [1, 2, 7, 64])
def test_what_shares_a_micro_batch_does_not_matter(tiny_folders, trainable, micro):
    """The same units in other micro-batches give the same sum to a millionth of C."""
    plan = make_plan(1, 0.05)
    table = random_table(NUM, seed=3)
    one, _ = Step(tiny_folders["bert"], "bert", trainable, plan).run(table, 0)
    other, _ = Step(tiny_folders["bert"], "bert", trainable, plan, micro).run(table, 0)
    assert float((one - other).norm()) <= 0.05 * SLACK
