"""One process's share of a step: total, shape-stable, and resumable bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pft_ray.errors import InputError, ModelError, ResumeError
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.types import ClippedSum, NoisyShare, PrivateGrad
from tests.training.tiny import (
    LABELS,
    VOCAB,
    loaded,
    naive_gradients,
    naive_sum,
    random_table,
    relative_error,
    spec_of,
)

ADAMW = OptimizerSpec("adamw", 0.01, num_steps=6, warmup_steps=2, decay="linear")
EVERYONE = np.arange(10)


def work_on(folder, *, micro=4, trainable="adapter+head", table=None, dtype=None):
    spec = spec_of(folder, "bert", lora=trainable != "all", layers=(2,))
    model = loaded(spec, dtype or torch.float64)
    work = LocalWork(model, table or random_table(10, seed=6), max_micro_batch=micro)
    work.start_phase(trainable, ADAMW)
    return work


def reference(work, table, clip_norm, rows):
    named = work._clipper._parameters
    gradients = naive_gradients(work._model, named, table.take(rows))
    return naive_sum(gradients, clip_norm)


@pytest.mark.parametrize("trainable", ["head", "adapter", "adapter+head", "all"])
@pytest.mark.parametrize("micro", [1, 3, 4, 64])
def test_micro_batches_do_not_change_the_sum(tiny_folders, trainable, micro):
    table = random_table(10, seed=6)
    work = work_on(tiny_folders["bert"], micro=micro, trainable=trainable, table=table)
    rows = np.array([0, 1, 3, 4, 5, 8, 9])
    found = work.clipped_sum(rows, 0.3)
    assert isinstance(found, ClippedSum)
    assert found.clip_norm == 0.3
    assert found.vector.shape == (work.num_parameters,)
    assert relative_error(found.vector, reference(work, table, 0.3, rows)) < 1e-10
    assert work.num_faulty == 0


def test_an_empty_batch_is_zero_without_running_the_model(tiny_folders):
    work = work_on(tiny_folders["bert"])
    work._model.losses = None
    found = work.clipped_sum(np.zeros(0, dtype=np.int64), 1.0)
    assert found.vector.shape == (work.num_parameters,)
    assert not found.vector.any()


def test_a_record_cannot_be_in_a_batch_twice(tiny_folders):
    work = work_on(tiny_folders["bert"])
    with pytest.raises(ValueError, match="twice"):
        work.clipped_sum(np.array([1, 2, 1]), 1.0)
    for rows in ([-1, 9], [3, 10]):
        with pytest.raises(ValueError, match="positions"):
            work.clipped_sum(np.array(rows), 1.0)


def test_a_step_needs_a_phase(tiny_folders):
    work = LocalWork(
        loaded(spec_of(tiny_folders["bert"], "bert")),
        random_table(3),
        max_micro_batch=2,
    )
    with pytest.raises(RuntimeError, match="start_phase"):
        work.clipped_sum(np.array([0]), 1.0)
    with pytest.raises(RuntimeError, match="start_phase"):
        work.apply(PrivateGrad(torch.zeros(1)))


def test_shapes_come_from_the_table_not_from_the_batch(tiny_folders):
    """Short records run at the table's full length."""
    table = random_table(4, lengths=[1, 1, 2, 1])
    work = work_on(tiny_folders["bert"], table=table)
    seen = []
    losses = work._model.losses

    def spy(batch):
        seen.append(tuple(batch.input_ids.shape))
        return losses(batch)

    work._model.losses = spy
    work.clipped_sum(np.array([0, 1, 3]), 1.0)
    assert seen == [(3, table.max_length)]


class Poisoned:
    """Makes records that hold ``marker`` raise ``error`` in the losses."""

    def __init__(self, work, marker, error):
        self.inner, self.marker, self.error = work._model.losses, marker, error
        self.sizes = []
        work._model.losses = self

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if bool((batch.input_ids == self.marker).any()):
            raise self.error
        return self.inner(batch)


def poisoned_table():
    table = random_table(10, seed=6)
    table.input_ids[table.input_ids == 39] = 38
    table.input_ids[5, 0] = 39
    return table


@pytest.mark.parametrize(
    "error",
    [
        ValueError("poison"),
        IndexError("out of range"),
        ZeroDivisionError(),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_raising_record_alone_is_zero(tiny_folders, error):
    table = poisoned_table()
    work = work_on(tiny_folders["bert"], table=table)
    expected = work.clipped_sum(np.delete(EVERYONE, 5), 0.3).vector
    Poisoned(work, 39, error)
    probe = work._synthetic
    work._synthetic = lambda n: replace(
        probe(n), input_ids=probe(n).input_ids.clamp(max=38)
    )
    found = work.clipped_sum(EVERYONE, 0.3).vector
    assert float((found - expected).norm()) < 1e-12 * float(expected.norm())
    assert work.num_faulty == 1
    work.clipped_sum(EVERYONE, 0.3)
    assert work.num_faulty == 1


def test_an_error_that_is_not_a_records_stops_the_step(tiny_folders):
    """When a made-up record fails as well, the model or the machine is at fault."""
    work = work_on(tiny_folders["bert"])

    def broken(batch):
        raise OSError

    work._model.losses = broken
    with pytest.raises(OSError):  # noqa: PT011 - the very error raised above
        work.clipped_sum(EVERYONE, 0.3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] not enough memory: you tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "torch", "words", "allocator"],
)
def test_out_of_memory_retries_the_same_records_in_halves(tiny_folders, error):
    work = work_on(tiny_folders["bert"], micro=8)
    expected = work.clipped_sum(EVERYONE, 0.3).vector
    losses, sizes = work._model.losses, []

    def small_machine(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise error
        return losses(batch)

    work._model.losses = small_machine
    found = work.clipped_sum(EVERYONE, 0.3).vector
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2]
    assert float((found - expected).norm()) < 1e-12 * float(expected.norm())
    assert work.num_faulty == 0


def test_a_machine_without_memory_for_one_record_stops_the_step(tiny_folders):
    work = work_on(tiny_folders["bert"])

    def full(batch):
        raise MemoryError

    work._model.losses = full
    with pytest.raises(MemoryError):
        work.clipped_sum(EVERYONE, 0.3)


@pytest.mark.parametrize("trainable", ["head", "adapter+head", "all"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_disturbs_no_other(tiny_folders, trainable, value):
    table = poisoned_table()
    work = work_on(tiny_folders["bert"], trainable=trainable, table=table)
    expected = work.clipped_sum(np.delete(EVERYONE, 5), 0.3).vector
    with torch.no_grad():
        work._model.stack.embeddings.word_embeddings.weight[39] = value
    fresh = LocalWork(work._model, table, max_micro_batch=4)
    fresh._synthetic = lambda n: replace(
        work._synthetic(n), input_ids=work._synthetic(n).input_ids.clamp(max=38)
    )
    fresh.start_phase(trainable, ADAMW)
    found = fresh.clipped_sum(EVERYONE, 0.3).vector
    assert float((found - expected).norm()) < 1e-10 * float(expected.norm())
    assert fresh.num_faulty == 1


@pytest.mark.parametrize("trainable", ["head", "adapter+head", "all"])
def test_faulty_rows_of_any_kind_contribute_zero(tiny_folders, trainable):
    """Empty records, unknown tokens and impossible classes."""
    table = random_table(10, seed=6)
    work = work_on(tiny_folders["bert"], trainable=trainable, table=table)
    rest = np.delete(EVERYONE, [1, 4, 7])
    expected = work.clipped_sum(rest, 0.3).vector
    table.lengths[1] = 0
    table.input_ids[4, 0] = VOCAB + 5
    table.targets[7] = LABELS
    work = work_on(tiny_folders["bert"], trainable=trainable, table=table)
    found = work.clipped_sum(EVERYONE, 0.3).vector
    assert float((found - expected).norm()) < 1e-10 * float(expected.norm())
    assert work.num_faulty == 3


def test_a_block_of_faulty_rows_contributes_zero(tiny_folders):
    table = random_table(4, seed=6)
    table.input_ids[:, 0] = VOCAB
    for trainable in ("head", "adapter+head"):
        work = work_on(tiny_folders["bert"], trainable=trainable, table=table)
        assert not work.clipped_sum(np.arange(4), 0.3).vector.any()
        assert work.num_faulty == 4


def test_evaluation_is_total(tiny_folders):
    table = random_table(10, seed=6)
    work = work_on(tiny_folders["bert"])
    clean = work.evaluate_probabilities(table)
    clean_losses = work.evaluate_losses(table)
    table.lengths[1] = 0
    table.input_ids[4, 0] = VOCAB
    table.targets[7] = LABELS
    table = replace(table)
    found = work.evaluate_probabilities(table)
    losses = work.evaluate_losses(table)
    assert found.dtype == np.float32
    assert found.shape == (10, LABELS)
    good = np.delete(EVERYONE, [1, 4])
    np.testing.assert_allclose(found[good], clean[good], rtol=1e-6)
    np.testing.assert_allclose(found[[1, 4]], 1 / LABELS, rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    good = np.delete(EVERYONE, [1, 4, 7])
    np.testing.assert_allclose(losses[good], clean_losses[good], rtol=1e-6)
    np.testing.assert_allclose(losses[[1, 4, 7]], np.log(LABELS), rtol=1e-6)


def test_evaluation_follows_the_parameters(tiny_folders):
    """What is kept for evaluation never outlives the parameters it came from."""
    table = random_table(6, seed=9)
    work = work_on(tiny_folders["bert"])
    for trainable in ("head", "adapter+head", "head"):
        work.start_phase(trainable, ADAMW)
        for _ in range(2):
            grad = torch.ones(work.num_parameters)
            work.apply(PrivateGrad(grad))
            found = work.evaluate_losses(table)
            fresh = LocalWork(work._model, table, max_micro_batch=4)
            np.testing.assert_allclose(found, fresh.evaluate_losses(table), rtol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt2-tied"])
def test_causal_losses_count_only_a_records_own_targets(tiny_folders, kind):
    model = loaded(spec_of(tiny_folders[kind], kind, lora=True))
    table = random_table(5, seed=2)
    table.loss_mask[3] = 0
    work = LocalWork(model, table, max_micro_batch=2)
    losses = work.evaluate_losses(table)
    assert losses[3] == 0
    ids = torch.from_numpy(table.input_ids).long()
    with torch.no_grad():
        for row in (0, 1, 2, 4):
            length = int(table.lengths[row])
            logits = model.module(input_ids=ids[row : row + 1, :length]).logits[0]
            picked = [
                nn.functional.cross_entropy(logits[t - 1], ids[row, t])
                for t in range(1, length)
                if table.loss_mask[row, t]
            ]
            expected = float(torch.stack(picked).mean()) if picked else 0.0
            assert losses[row] == pytest.approx(expected, rel=1e-6)


def test_only_a_private_gradient_is_applied(tiny_folders):
    work = work_on(tiny_folders["bert"])
    vector = torch.zeros(work.num_parameters)
    for wrong in (vector, ClippedSum(vector, 1.0), NoisyShare(vector, 0, 1.0)):
        with pytest.raises(TypeError, match="PrivateGrad"):
            work.apply(wrong)
    with pytest.raises(ValueError, match="shape"):
        work.apply(PrivateGrad(vector[:-1]))
    work.apply(PrivateGrad(vector))


def test_plain_sum_does_not_clip(tiny_folders):
    table = random_table(10, seed=6)
    work = work_on(tiny_folders["bert"], table=table)
    expected = reference(work, table, 1e9, EVERYONE)
    assert relative_error(work.plain_sum(EVERYONE), expected) < 1e-10


PHASES = [
    ("head", ADAMW),
    ("adapter+head", ADAMW),
    ("head", replace(ADAMW, name="sgd")),
]


def trained(work, start, stop, phase_steps=4):
    """Runs steps [start, stop) with gradients that depend on the step alone."""
    for step in range(start, stop):
        index = step // phase_steps
        if step % phase_steps == 0:
            work.start_phase(PHASES[index][0], phase_spec(index))
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(work.num_parameters, generator=generator)
        clipped = work.clipped_sum(np.arange(step % 3, 10, 2), 0.5).vector
        work.apply(PrivateGrad(clipped.float() + 0.1 * noise))


def phase_spec(index, phase_steps=4):
    return replace(PHASES[index][1], num_steps=phase_steps)


@pytest.mark.parametrize("stop", [0, 2, 4, 7, 8, 9, 12])
def test_resume_is_bit_by_bit_within_and_across_phases(tiny_folders, stop):
    whole = work_on(tiny_folders["bert"], dtype=torch.float32)
    trained(whole, 0, 12)
    first = work_on(tiny_folders["bert"], dtype=torch.float32)
    trained(first, 0, stop)
    saved = first.state()
    second = work_on(tiny_folders["bert"], dtype=torch.float32)
    if 0 < stop < 12:
        index = stop // 4
        second.start_phase(PHASES[index][0], phase_spec(index))
    second.load_state(saved)
    trained(second, stop, 12)
    final, again = whole.state(), second.state()
    names = [name for name in final if name.startswith("parameter/")]
    assert names
    assert all(torch.equal(final[name], again[name]) for name in names)
    if stop < 12:
        assert set(final) == set(again)
        assert all(torch.equal(final[name], again[name]) for name in final)


def test_a_state_is_a_copy(tiny_folders):
    work = work_on(tiny_folders["bert"])
    before = work.state()
    work.apply(PrivateGrad(torch.ones(work.num_parameters)))
    after = work.state()
    assert not torch.equal(
        before["parameter/head.weight"], after["parameter/head.weight"]
    )
    work.load_state(before)
    assert torch.equal(
        before["parameter/head.weight"], work.state()["parameter/head.weight"]
    )


def test_loaded_adapters_are_seen_by_kept_features(tiny_folders):
    """A head phase keeps features; loading other adapters makes them anew."""
    table = random_table(10, seed=6)
    work = work_on(tiny_folders["bert"], trainable="head", table=table)
    old_sum = work.clipped_sum(EVERYONE, 0.3).vector
    old_losses = work.evaluate_losses(table)
    state = {k: v for k, v in work.state().items() if k.startswith("parameter/")}
    for name in state:
        if ".lora_B" in name:
            state[name] = state[name] + 0.5
    work.load_state(state)
    expected = reference(work, table, 0.3, EVERYONE)
    assert relative_error(old_sum, expected) > 1e-3
    assert relative_error(work.clipped_sum(EVERYONE, 0.3).vector, expected) < 1e-10
    fresh = LocalWork(work._model, table, max_micro_batch=4).evaluate_losses(table)
    assert np.abs(old_losses - fresh).max() > 1e-3
    np.testing.assert_allclose(work.evaluate_losses(table), fresh, rtol=1e-6)


def test_a_state_of_another_phase_or_model_is_refused(tiny_folders):
    work = work_on(tiny_folders["bert"])
    work.apply(PrivateGrad(torch.ones(work.num_parameters)))
    saved = work.state()
    other = work_on(tiny_folders["bert"], trainable="head")
    with pytest.raises(ResumeError, match="adapter\\+head"):
        other.load_state(saved)
    sgd = work_on(tiny_folders["bert"])
    sgd.start_phase("adapter+head", replace(ADAMW, name="sgd"))
    with pytest.raises(ResumeError, match="optimiser"):
        sgd.load_state(saved)
    full = work_on(tiny_folders["bert"], trainable="all")
    with pytest.raises(ResumeError, match="other parameters"):
        full.load_state(saved)


def test_full_fine_tuning_resumes_and_keeps_every_weight(tiny_folders):
    work = work_on(tiny_folders["bert"], trainable="all", dtype=torch.float32)
    work.apply(PrivateGrad(torch.ones(work.num_parameters)))
    other = work_on(tiny_folders["bert"], trainable="all", dtype=torch.float32)
    other.load_state(work.state())
    for one in (work, other):
        one.apply(PrivateGrad(0.5 * torch.ones(one.num_parameters)))
    first, second = work.state(), other.state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "parameter/backbone.embeddings.word_embeddings.weight" in first


def test_trained_base_weights_are_never_left_behind(tiny_folders):
    """A state without base weights does not undo full fine-tuning: it is refused."""
    spec = spec_of(tiny_folders["bert"], "bert")
    work = LocalWork(loaded(spec), random_table(10), max_micro_batch=4)
    initial = work.state()
    work.start_phase("all", ADAMW)
    work.load_state(initial)
    complete = work.state()
    work.apply(PrivateGrad(torch.ones(work.num_parameters)))
    with pytest.raises(ResumeError, match="freshly loaded"):
        work.load_state(initial)
    work.start_phase("all", ADAMW)
    work.load_state(complete)
    found = work.state()
    names = [name for name in complete if name.startswith("parameter/")]
    assert all(torch.equal(complete[name], found[name]) for name in names)
    with pytest.raises(ResumeError, match="freshly loaded"):
        work.load_state(initial)


def test_records_that_influence_one_another_run_one_by_one(tiny_folders):
    """A loss scaled by the batch's mean: together, none has a gradient of its own."""
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    losses = model.losses

    def coupled(batch):
        each = losses(batch)
        return each * each.detach().mean()

    model.losses = coupled
    table = random_table(5)
    work = LocalWork(model, table, max_micro_batch=4)
    work.start_phase("head", ADAMW)
    assert "record beside it" in work.slow_reason
    gradients = naive_gradients(model, model.named_parts("head"), table)
    clip_norm = float(gradients.norm(dim=1).median())
    found = work.clipped_sum(np.arange(5), clip_norm).vector
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-10


def test_impossible_sizes_are_refused(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    with pytest.raises(InputError, match="max_micro_batch"):
        LocalWork(model, random_table(3), max_micro_batch=0)
    with pytest.raises(ModelError, match="17 tokens; the model takes 16"):
        LocalWork(model, random_table(3, length=17), max_micro_batch=1)


def test_labels_of_other_models_have_no_probabilities(tiny_folders):
    model = loaded(spec_of(tiny_folders["llama"], "llama", lora=True))
    table = random_table(3)
    with pytest.raises(ModelError, match="no class probabilities"):
        LocalWork(model, table, max_micro_batch=2).evaluate_probabilities(table)
