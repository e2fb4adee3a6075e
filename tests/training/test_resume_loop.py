"""A run that is cut and resumed ends with the very parameters of one that was not.

Keys depend on the step alone here, so that both runs draw the same batches and noise;
in production a resumed attempt has fresh keys.
"""

from __future__ import annotations

import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.checkpoint import read_checkpoint, write_checkpoint
from pft_ray.training.headers import CheckpointHeader
from pft_ray.training.local import LocalWork
from pft_ray.training.loop import GrantReply, TrainingLoop
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.step import Alone, PrivateStep, StepKeys
from tests.training.tiny import loaded, random_table, spec_of, write_tiny

KEY = bytes(range(32))


class FixedGrants:
    """Grants every step under a key of the step; may stop before a step."""

    rank = 0
    token = b"0123456789abcdef"

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def open_attempt(self, tokens, start, reason):
        return 1

    def request(self, attempt, start, stop):
        if self.stop_at is not None and start >= self.stop_at:
            return GrantReply("stop")
        steps = tuple(
            StepKeys(
                attempt,
                step,
                derive_key(KEY, "sample", step),
                ((0, 1),),
                (derive_key(KEY, "noise", step),),
            )
            for step in range(start, stop)
        )
        return GrantReply("granted", steps)

    def ask_ahead(self, attempt, start, stop):
        pass

    def progress(self, attempt, step):
        return False


def make_plan(*, adaptive=False):
    rule = QuantileClipping(0.6, 3.0, 1e-3, 1e3, learning_rate=0.5)
    how = ("adaptive", rule) if adaptive else ()
    return Plan(
        unit="record",
        size=40,
        sample_rate=0.4,
        noise_multiplier=0.5,
        phases=(
            Phase("one", 4, "head", 1.0, *how),
            Phase("two", 6, "adapter+head", 0.5, *how),
        ),
        fault_reserve=4,
        delta=1e-5,
        grant_size=1,
        checkpoint_interval=1,
    )


def train(folder, model_folder, plan, *, start=0, resume=None, stop_at=None):
    model = loaded(spec_of(model_folder, "bert", lora=True), torch.float32, stir=False)
    table = random_table(40)
    work = LocalWork(model, table, max_micro_batch=8)

    def enter(index):
        chosen = plan.phases[index]
        optimizer = OptimizerSpec(
            "adamw", 0.05, chosen.num_steps, weight_decay=0.01, warmup_steps=2
        )
        work.start_phase(chosen.trainable, optimizer, chosen.clipping)

    private_step = PrivateStep(
        plan, SampledGaussian.from_plan(plan), work, table.digests, Alone()
    )
    phase = -1
    if resume is not None:
        tensors, header = read_checkpoint(resume, plan.digest)
        start = header.step
        phase = plan.phase_at(start)[0]
        enter(phase)
        work.load_state(tensors)
        private_step.clip_norms.load_state(tensors, start)

    def save(step, attempt):
        target = folder / f"step-{step}"
        target.mkdir()
        header = CheckpointHeader(
            "r", plan.digest, step, attempt, ledger_id="l", sequence=1, root="r"
        )
        write_checkpoint(target, work.state() | private_step.clip_norms.state(), header)

    loop = TrainingLoop(
        plan,
        private_step,
        FixedGrants(stop_at),
        enter_phase=enter,
        checkpoint=save,
        phase=phase,
    )
    outcome = loop.run(start, "start")
    return outcome, work.state() | private_step.clip_norms.state()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("cut", [2, 4, 7])
def test_resuming_changes_nothing_but_the_attempt(tmp_path, cut, adaptive):
    torch.set_num_threads(1)
    plan = make_plan(adaptive=adaptive)
    model = write_tiny("bert", tmp_path / "model")
    whole_dir, part_dir, rest_dir = (tmp_path / n for n in ("whole", "part", "rest"))
    for folder in (whole_dir, part_dir, rest_dir):
        folder.mkdir()
    outcome, whole = train(whole_dir, model, plan)
    assert outcome.status == "completed"
    outcome, _ = train(part_dir, model, plan, stop_at=cut)
    assert (outcome.status, outcome.step) == ("interrupted", cut)
    outcome, rest = train(rest_dir, model, plan, resume=part_dir / f"step-{cut}")
    assert outcome.status == "completed"
    assert rest.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, rest[name]), name
    if adaptive:
        used = rest["clip_norms/used"].tolist()
        assert (len(used), used[0], used[4]) == (10, 1.0, 0.5)
        assert len(set(used)) == 10, "C moves in every step"
