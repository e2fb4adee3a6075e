"""A run of 1, then 2, then 1 workers is the run that stayed at 1: same batches, same
weights, one attempt, no step made or paid twice.

Both have one injected attempt key, so that their keys are equal; in production every
run has a fresh one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from pft_ray.accounting.plan import Phase
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.cluster import coordinator as coordinator_module
from pft_ray.cluster.inputs import shard_of
from pft_ray.crypto import new_token
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.checkpoint import read_checkpoint, write_checkpoint
from pft_ray.training.headers import CheckpointHeader
from pft_ray.training.local import LocalWork
from pft_ray.training.loop import TrainingLoop
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.step import PrivateStep
from tests.cluster.reserved import Reserved, reserve
from tests.training.ranks import Ranks
from tests.training.tiny import loaded, random_table, spec_of, write_tiny

UNITS = 40
PLAN = {
    "size": UNITS,
    "sample_rate": 0.4,
    "noise_multiplier": 0.5,
    "phases": (Phase("one", 4, "head", 1.0), Phase("two", 8, "adapter+head", 0.5)),
    "fault_reserve": 4,
    "delta": 1e-5,
    "grant_size": 2,
    "checkpoint_interval": 2,
    "evaluation": None,
}


class GroupEndedError(Exception):
    """Ray ends the processes of a group that is resized."""


@dataclass
class Sizes:
    """One run whose group changes its size at the given steps.

    Attributes:
        changes: Size by the step that it begins at.
        batches: Global batch of each step: the digests of its units.
    """

    run: Reserved
    model: object
    changes: dict[int, int]
    batches: dict[int, set[bytes]] = field(default_factory=dict)
    made: list[int] = field(default_factory=list)
    rosters: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.coordinator = self.run.coordinator()
        self.table = random_table(UNITS)
        self.lock = threading.Lock()
        self.saved = None

    def to_the_end(self):
        start, world = 0, self.changes[0]
        while start is not None:
            self.rosters.append(world)
            start = self.one_group(start, world)
            if start is not None:
                world = self.changes[start]
        return self.state

    def one_group(self, start, world):
        """Returns the step of the resize that ended the group; None at the end."""
        group, ended = Ranks(world), []
        # Models are loaded one after the other: the library patches itself meanwhile.
        members = [Member(self, group, rank, world) for rank in range(world)]

        def rank_main(rank):
            try:
                members[rank].live(start)
            except GroupEndedError as end:
                ended.append(int(str(end)))
                group.barrier.abort()
            except threading.BrokenBarrierError:
                pass

        threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return ended[0] if ended else None


class Member:
    """One rank, with the real coordinator, step, sampler, model and checkpoint."""

    def __init__(self, sizes, group, rank, world):
        self.sizes, self.rank, self.token = sizes, rank, new_token()
        table = sizes.table
        self.table = table.take(shard_of(table.digests, rank, world))
        model = loaded(spec_of(sizes.model, "bert", lora=True), torch.float32)
        self.work = LocalWork(model, self.table, max_micro_batch=8)
        plan = sizes.run.plan
        mechanism = SampledGaussian.from_plan(plan)
        self.step = PrivateStep(
            plan, mechanism, self, self.table.digests, group.of(rank)
        )

    def live(self, start):
        sizes, phase = self.sizes, -1
        if start:
            tensors, header = read_checkpoint(sizes.saved, sizes.run.plan.digest)
            assert header.step == start
            phase = sizes.run.plan.phase_at(start)[0]
            self.enter(phase)
            self.work.load_state(tensors)
            self.step.clip_norms.load_state(tensors, start)
        loop = TrainingLoop(
            sizes.run.plan, self.step, self, self.enter, self.save, phase=phase
        )
        outcome = loop.run(start, "resume" if start else "start")
        assert outcome.status == "completed", outcome.error
        if self.rank == 0:
            sizes.state = self.work.state() | self.step.clip_norms.state()

    def enter(self, index):
        phase = self.sizes.run.plan.phases[index]
        optimizer = OptimizerSpec("adamw", 0.05, phase.num_steps, weight_decay=0.01)
        self.work.start_phase(phase.trainable, optimizer, phase.clipping)

    def save(self, step, attempt):
        if self.rank:
            return
        sizes = self.sizes
        folder = sizes.run.folder / f"step-{step}-{len(sizes.rosters)}"
        folder.mkdir()
        digest = sizes.run.plan.digest
        header = CheckpointHeader(
            "run-1", digest, step, attempt, ledger_id="l", sequence=1, root="r"
        )
        state = self.work.state() | self.step.clip_norms.state()
        write_checkpoint(folder, state, header)
        sizes.coordinator.checkpoint_registered(attempt, step, folder.name)
        sizes.saved = folder

    # What the step does, with its batches noted.

    def clipped_sum(self, positions, clip_norm):
        sizes, step = self.sizes, self.step.last[1]
        with sizes.lock:
            batch = sizes.batches.setdefault(step, set())
            batch.update(self.table.digests[p].tobytes() for p in positions)
            sizes.made += [step] * (self.rank == 0)
        return self.work.clipped_sum(positions, clip_norm)

    def apply(self, grad):
        self.work.apply(grad)

    # The line to the coordinator.

    def open_attempt(self, tokens, start, reason):
        return self.sizes.coordinator.open_attempt(tokens, start, reason)

    def request(self, attempt, start, stop):
        sizes = self.sizes
        with sizes.lock:
            if start and start in sizes.changes and sizes.changes[start] != self.world:
                sizes.coordinator.want_boundary(sizes.changes[start])
            return sizes.coordinator.request(
                attempt, self.rank, self.token, start, stop
            )

    @property
    def world(self):
        return self.sizes.rosters[-1]

    def ask_ahead(self, attempt, start, stop):
        pass

    def progress(self, attempt, step):
        return self.sizes.coordinator.progress(attempt, step)

    def park(self, attempt, step):
        coordinator = self.sizes.coordinator
        assert coordinator.park(attempt, self.rank, self.token, step)
        assert coordinator.approve_resize(self.sizes.changes[step])
        raise GroupEndedError(step)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny("bert", tmp_path_factory.mktemp("model"))


def run_sizes(folder, model, changes, num_shares=2, **more):
    folder.mkdir()
    run = reserve(folder, **(PLAN | more), num_shares=num_shares)
    sizes = Sizes(run, model, changes)
    sizes.to_the_end()
    return sizes


@pytest.fixture
def one_key(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(coordinator_module, "new_key", lambda: bytes(range(32)))


# Within a phase, at its end, and grown and shrunk in one.
CHANGES = [{2: 2, 6: 1}, {4: 2, 8: 1}, {6: 2, 8: 1, 10: 2}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_resized_run_is_the_run_that_was_not(tmp_path, model, one_key, changes):
    still = run_sizes(tmp_path / "still", model, {0: 1})
    moved = run_sizes(tmp_path / "moved", model, {0: 1} | changes)
    assert moved.rosters == [1, *changes.values()]
    assert moved.batches == still.batches
    assert set(still.batches) == set(range(12))
    assert moved.made == still.made == list(range(12)), "no step is made twice"
    for sizes in (still, moved):
        status = sizes.run.ledger().run_status("run-1")
        assert (status.num_attempts, status.num_steps_charged) == (1, 12)
    assert_same_weights(moved, still)


def test_a_clip_norm_that_moves_goes_on_in_the_next_group(tmp_path, model, one_key):
    rule = QuantileClipping(0.6, 3.0, 1e-3, 1e3, learning_rate=0.5)
    phases = (Phase("one", 12, "head", 1.0, "adaptive", rule),)
    still = run_sizes(tmp_path / "still", model, {0: 1}, phases=phases)
    moved = run_sizes(tmp_path / "moved", model, {0: 1, 4: 2, 8: 1}, phases=phases)
    assert moved.batches == still.batches
    assert len(set(still.state["clip_norms/used"].tolist())) == 12, "C moves"
    assert_same_weights(moved, still)


def test_the_comparison_sees_a_share_that_is_missing(
    tmp_path, model, one_key, monkeypatch
):
    """The same comparison, with a run that draws nothing for its second share."""
    still = run_sizes(tmp_path / "still", model, {0: 1})
    calls, share = count(), SampledGaussian.share

    def every_second(self, *args):
        drawn = share(self, *args)
        return (0 * piece for piece in drawn) if next(calls) % 2 else drawn

    monkeypatch.setattr(SampledGaussian, "share", every_second)
    moved = run_sizes(tmp_path / "moved", model, {0: 1})
    assert moved.batches == still.batches
    with pytest.raises(AssertionError):
        assert_same_weights(moved, still)


def assert_same_weights(one, other):
    for name, value in other.state.items():
        torch.testing.assert_close(one.state[name], value, rtol=1e-4, atol=1e-5)
