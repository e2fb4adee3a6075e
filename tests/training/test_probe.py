"""The probe of a phase: structure by a clock of its own, and nothing is touched."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan, UserLevel
from pft_ray.data.tokens import TokenTable
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training import probe as probe_module
from pft_ray.training.batch import synthetic_batch
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec, PrivateOptimizer
from pft_ray.training.phase_parts import PhaseParts
from pft_ray.training.probe import (
    PhaseProbe,
    expected_records,
    probe_phase,
    step_time,
)
from pft_ray.training.step import Alone, PrivateStep, StepKeys
from pft_ray.training.types import PrivateGrad
from tests.training.tiny import LENGTH, VOCAB, loaded, random_table, spec_of

ADAMW = OptimizerSpec("adamw", 0.01, num_steps=9, weight_decay=0.1)
PHASES = {
    "features": {"trainable": "head", "layers": (2,)},
    "hidden": {"trainable": "adapter+head", "layers": (2,)},
    "none": {"trainable": "adapter+head", "layers": (0,)},
    "all": {"trainable": "all"},
}


def work_on(folders, name="hidden", *, micro=4, table=None, **changes):
    trainable = PHASES[name]["trainable"]
    spec = spec_of(
        folders["bert"],
        "bert",
        lora=trainable != "all",
        layers=PHASES[name].get("layers"),
    )
    table = table or random_table(40, seed=6)
    model = loaded(replace(spec, **changes), torch.float32)
    work = LocalWork(model, table, max_micro_batch=micro)
    work.start_phase(trainable, ADAMW)
    return work


class Clock:
    """Goes on only when somebody works: by records, by updates, by noise shares."""

    def __init__(self, monkeypatch, *works, record_s=1e-3, call_s=0.0):
        self.now_s, self.record_s, self.call_s = 0.0, record_s, call_s
        for work in works:
            self._watch_losses(monkeypatch, work)
        apply, share = PrivateOptimizer.apply, SampledGaussian.share

        def slow_apply(optimizer, grad):
            apply(optimizer, grad)
            self.now_s += 0.5

        def slow_share(mechanism, key, size, clip_norm, numerator):
            self.now_s += 0.25
            return share(mechanism, key, size, clip_norm, numerator)

        monkeypatch.setattr(PrivateOptimizer, "apply", slow_apply)
        monkeypatch.setattr(SampledGaussian, "share", slow_share)

    def _watch_losses(self, monkeypatch, work):
        losses = work._model.losses

        def slow(batch):
            self.now_s += self.call_s + self.record_s * len(batch)
            return losses(batch)

        monkeypatch.setattr(work._model, "losses", slow)

    def __call__(self):
        return self.now_s


class Forbidden:
    """Stands where data were: any look at it fails."""

    def __init__(self, length):
        self.max_length = length

    def __getattr__(self, name):
        pytest.fail(f"the probe looked at {name}")

    def __len__(self):
        pytest.fail("the probe counted records")


def everything(work):
    """All that training may change, and all random states."""
    flags = [p.requires_grad for p in work._model.module.parameters()]
    modes = [m.training for m in work._model.module.modules()]
    return (
        {name: value.clone() for name, value in work.state().items()},
        {n: p.detach().clone() for n, p in work._model.module.named_parameters()},
        torch.random.get_rng_state(),
        np.random.get_state()[1].copy(),  # noqa: NPY002 - must stay as it was
        flags + modes + [p.grad is None for p in work._model.module.parameters()],
    )


def assert_same(before, after):
    for old, new in zip(before, after, strict=True):
        if isinstance(old, dict):
            assert old.keys() == new.keys()
            assert all(torch.equal(old[name], new[name]) for name in old)
        elif isinstance(old, torch.Tensor):
            assert torch.equal(old, new)
        else:
            assert list(old) == list(new)


CASES = [(name, {}) for name in PHASES] + [
    ("none", {"dropout": True}),
    ("all", {"gradient_checkpointing": True}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_weights_optimiser_and_random_states_stay(tiny_folders, name, changes):
    work = work_on(tiny_folders, name, **changes)
    work.apply(PrivateGrad(torch.ones(work.num_parameters)))
    before = everything(work)
    probe_phase(work, 8, budget_s=0.05, with_memory=True)
    assert_same(before, everything(work))
    assert work.num_faulty == 0
    if name in ("features", "hidden"):
        store = work._cache._features if name == "features" else work._cache._hidden
        assert store._values is None
        assert not store.known.any()


def test_the_run_goes_on_bit_by_bit(tiny_folders):
    sums = []
    for probed in (True, False):
        work = work_on(tiny_folders)
        work.apply(PrivateGrad(torch.full((work.num_parameters,), 0.1)))
        if probed:
            probe_phase(work, 4, budget_s=0.05)
        clipped = work.clipped_sum(np.array([3, 1, 7, 20, 21]), 0.5)
        work.apply(PrivateGrad(clipped.vector.float()))
        sums.append((clipped.vector, work.state()))
    assert torch.equal(sums[0][0], sums[1][0])
    assert all(torch.equal(sums[0][1][n], sums[1][1][n]) for n in sums[0][1])


@pytest.mark.parametrize("name", PHASES)
def test_no_record_is_looked_at(tiny_folders, monkeypatch, name):
    work = work_on(tiny_folders, name)
    seen = []
    losses = work._model.losses

    def spy(batch):
        seen.append(batch)
        return losses(batch)

    monkeypatch.setattr(work._model, "losses", spy)
    for owner in (work, work._cache):
        monkeypatch.setattr(owner, "_table", Forbidden(LENGTH))
    monkeypatch.setattr(work._cache, "batch", lambda _rows: pytest.fail("a batch"))
    monkeypatch.setattr(SampledGaussian, "sample", lambda *_: pytest.fail("sampled"))
    probe_phase(work, 4, budget_s=9)
    assert {len(batch) for batch in seen} == {1, 2, 4}
    for batch in seen:
        made_up = synthetic_batch(4, LENGTH, VOCAB, causal=False).at(
            slice(0, len(batch))
        )
        assert torch.equal(batch.input_ids, made_up.input_ids)
        assert torch.equal(batch.lengths, made_up.lengths)
        assert (batch.features is not None) == (name == "features")
        assert (batch.hidden is not None) == (name == "hidden")


def test_what_a_probe_may_see_holds_no_record(tiny_folders):
    """Nothing of a table can be reached from it, whatever attributes are followed."""
    work = work_on(tiny_folders, micro=4)
    work.clipped_sum(np.arange(8), 1.0)  # hidden states of records are kept now
    private = {id(getattr(work._table, f.name)) for f in fields(TokenTable)}
    private |= {id(work._table), id(work._cache), id(work._cache._hidden._values)}
    private -= {id(None)}
    waiting, seen = [work.phase_parts()], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        waiting += vars(value).values() if hasattr(value, "__dict__") else ()
        waiting += [c.cell_contents for c in getattr(value, "__closure__", None) or ()]
    assert id(work._model) in seen
    assert not private & seen
    assert {f.name for f in fields(PhaseParts)}.isdisjoint({"table", "users", "ids"})


def test_other_data_give_the_same_answer(tiny_folders, monkeypatch):
    works = [
        work_on(tiny_folders, table=random_table(40, seed=1)),
        work_on(tiny_folders, table=random_table(7, seed=2, lengths=[0, 1] * 3 + [1])),
    ]
    clock = Clock(monkeypatch, *works)
    first, second = (probe_phase(work, 4, clock=clock) for work in works)
    assert first.seconds_per_micro_batch == pytest.approx(4e-3)
    for name in ("seconds_per_micro_batch", "seconds_fixed", "seconds_per_share"):
        assert getattr(first, name) == pytest.approx(getattr(second, name))


@pytest.mark.parametrize(
    ("expected", "micro", "measured"),
    [(100.0, 4, 4), (3.4, 4, 3), (0.01, 4, 1), (1e9, 16, 16)],
)
def test_a_step_with_few_records_is_measured_with_few(
    tiny_folders, monkeypatch, expected, micro, measured
):
    work = work_on(tiny_folders, micro=micro)
    clock = Clock(monkeypatch, work, call_s=0.01)
    probe = probe_phase(work, expected, clock=clock)
    assert probe.micro_batch == measured
    assert probe.seconds_per_micro_batch == pytest.approx(0.01 + 1e-3 * measured)
    per_record_s = probe.seconds_per_micro_batch / measured
    assert probe.seconds_per_record == pytest.approx(per_record_s)


def test_the_measurement_is_bounded(tiny_folders, monkeypatch):
    """Of 0.1 s a record, six passes over two take 1.2 s and over four more than 2 s."""
    work = work_on(tiny_folders, micro=16)
    clock = Clock(monkeypatch, work, record_s=0.1)
    probe = probe_phase(work, 16, budget_s=2.0, clock=clock)
    assert probe.micro_batch == 2
    assert probe.seconds_per_micro_batch == pytest.approx(0.2)
    vectors_s = 6 * (0.5 + 0.25)
    assert clock.now_s < 2.0 + vectors_s
    start = clock.now_s
    slow = probe_phase(work, 16, budget_s=1e-9, clock=clock)
    assert (slow.micro_batch, slow.seconds_per_micro_batch) == (1, pytest.approx(0.1))
    assert clock.now_s - start < 5 * 0.1 + 2 * (0.5 + 0.25) + 1e-6


def test_the_predicted_time_is_that_of_a_real_step(tiny_folders, monkeypatch):
    """The same clock around a real step of as many records as are expected."""
    work = work_on(tiny_folders, micro=4)
    clock = Clock(monkeypatch, work, call_s=0.02)
    probe = probe_phase(work, 40.0, clock=clock)
    plan = Plan(
        unit="record",
        size=40,
        sample_rate=1.0,
        noise_multiplier=1.0,
        phases=(Phase("one", 9, "adapter+head", 0.5),),
        fault_reserve=0,
        delta=1e-5,
        num_shares=3,
    )
    step = PrivateStep(
        plan=plan,
        mechanism=SampledGaussian.from_plan(plan),
        work=work,
        unit_digests=work._table.digests,
        collective=Alone(),
    )
    start = clock.now_s
    shares = ((0, 1), (1, 1), (2, 1))
    step.run(StepKeys(1, 0, b"s" * 32, shares, tuple(bytes([i]) * 32 for i in b"abc")))
    assert work.num_faulty == 0
    serial_s, parallel_s = step_time(probe, expected_records(plan), plan.num_shares)
    assert serial_s + parallel_s == pytest.approx(clock.now_s - start, rel=1e-6)
    assert serial_s == pytest.approx(0.5)


def test_more_ranks_take_less_time_but_never_less_than_the_fixed_part():
    probe = PhaseProbe(8, 0.4, 0.1, 0.05, 0.0, 100, "none")
    serial_s, parallel_s = step_time(probe, 64.0, 4)
    assert (serial_s, parallel_s) == (0.1, pytest.approx(8 * 0.4 + 4 * 0.05))
    twice = step_time(probe, 128.0, 4)
    assert twice[0] == serial_s
    assert twice[1] - parallel_s == pytest.approx(3.2)


def test_long_vectors_are_measured_in_part_and_scaled(tiny_folders, monkeypatch):
    work = work_on(tiny_folders, "all")
    clock = Clock(monkeypatch, work)
    whole = probe_phase(work, 4, clock=clock)
    assert whole.num_parameters == work.num_parameters
    assert (whole.seconds_fixed, whole.seconds_per_share) == (0.5, 0.25)
    monkeypatch.setattr("pft_ray.training.probe._MOST_COORDINATES", 100)
    part = probe_phase(work, 4, clock=clock)
    scale = work.num_parameters / 100
    assert part.seconds_fixed == pytest.approx(0.5 * scale)
    assert part.seconds_per_share == pytest.approx(0.25 * scale)


def test_keeping_is_told_apart(tiny_folders, monkeypatch):
    found = {}
    for name in ("features", "hidden", "none"):
        work = work_on(tiny_folders, name)
        clock = Clock(monkeypatch, work)
        monkeypatch.setattr(
            work._model.stack,
            "forward",
            _slowed(work._model.stack.forward, clock),
        )
        found[name] = probe_phase(work, 4, budget_s=1e3, clock=clock)
        assert found[name].cache_level == name
    # The backbone of kept features is run before a step, not in it.
    assert found["features"].seconds_per_micro_batch == pytest.approx(4e-3)
    assert found["features"].seconds_to_keep == pytest.approx(2.0 / 4)
    assert found["hidden"].seconds_per_micro_batch == pytest.approx(2.0 + 4e-3)
    assert found["hidden"].seconds_to_keep == pytest.approx(2.0 / 4)
    assert found["none"].seconds_to_keep == 0.0
    kept = {name: probe.kept_bytes_per_record for name, probe in found.items()}
    assert kept == {"features": 16 * 4, "hidden": LENGTH * 16 * 4, "none": 0}


def _slowed(forward, clock):
    def slow(*args, **kwargs):
        clock.now_s += 2.0
        return forward(*args, **kwargs)

    return slow


def test_a_phase_must_be_started(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"), torch.float32)
    work = LocalWork(model, random_table(3), max_micro_batch=2)
    with pytest.raises(RuntimeError, match="start_phase"):
        probe_phase(work, 4)


def test_the_peak_is_none_where_the_system_does_not_tell(tiny_folders, monkeypatch):
    monkeypatch.setattr(probe_module, "tells_peaks", lambda: False)
    found = probe_phase(work_on(tiny_folders), 4, budget_s=0.05, with_memory=True)
    assert found.peak_bytes is None


def test_the_peak_is_measured_when_asked(tiny_folders):
    work = work_on(tiny_folders)
    assert probe_phase(work, 4, budget_s=0.05).peak_bytes is None
    peak = probe_phase(work, 4, budget_s=0.05, with_memory=True).peak_bytes
    assert 50e6 < peak < 24e9


@pytest.mark.parametrize(
    ("kind", "size", "records"), [("uls", 100, 0.1 * 300), ("els", 100, 0.1 * 300)]
)
def test_users_bring_their_declared_records(kind, size, records):
    plan = Plan(
        unit="user",
        size=size,
        sample_rate=0.1,
        noise_multiplier=1.0,
        phases=(Phase("one", 1, "head", 1.0),),
        fault_reserve=0,
        delta=1e-5,
        user=UserLevel(kind, 4, 300),
    )
    assert expected_records(plan) == pytest.approx(records)
