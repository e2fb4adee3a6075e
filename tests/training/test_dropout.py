"""A record's masks are its own: no other record, batch or retry changes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pft_ray.data.users import UserGroups
from pft_ray.errors import ModelError
from pft_ray.training import dropout
from pft_ray.training.batch import batch_of
from pft_ray.training.clipping import OneUnitClipper, UnsupportedUseError
from pft_ray.training.dropout import RecordDropout
from pft_ray.training.local import LocalWork
from pft_ray.training.models import load_model
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import loaded, naive_sum, random_table, relative_error, spec_of

SGD = OptimizerSpec("sgd", 0.05, num_steps=10)
TABLE = random_table(9, seed=4)
CLIP = 0.05
KINDS = [("bert", "all"), ("bert", "adapter+head"), ("gpt2-tied", "all")]


@pytest.fixture
def one_seed(monkeypatch):
    """Every step draws the same seed, so that two sums can be compared."""
    monkeypatch.setattr(dropout.secrets, "token_bytes", lambda n: b"s" * n)


def spec_with(folder, kind, trainable="all", *, lora_dropout=0.0, own=True, **more):
    spec = spec_of(folder, kind, lora="adapter" in trainable, **more)
    if lora_dropout:
        spec = replace(spec, lora=replace(spec.lora, dropout=lora_dropout))
    return replace(spec, dropout=own)


def work_on(spec, trainable, table=TABLE, micro=4):
    work = LocalWork(loaded(spec), table, max_micro_batch=micro)
    work.start_phase(trainable, SGD)
    return work


def naive(work, rows, clip_norm):
    """Clips plain gradients, made one record at a time under the same masks."""
    model, total = work._model, []
    named = work._clipper._parameters
    with model.training_pass():
        for row in rows:
            batch = batch_of(work._table, np.array([row]))
            loss = model.training_losses(batch)[0]
            grads = torch.autograd.grad(loss, [p for _, p in named])
            total.append(torch.cat([grad.flatten() for grad in grads]))
    return naive_sum(torch.stack(total), clip_norm)


@pytest.mark.parametrize(("kind", "trainable"), KINDS)
def test_the_sum_is_that_of_plain_gradients_under_the_same_masks(
    tiny_folders, one_seed, kind, trainable
):
    rows = np.array([0, 2, 3, 5, 8])
    sums = {}
    for own in (True, False):
        spec = spec_with(tiny_folders[kind], kind, trainable, own=own)
        work = work_on(spec, trainable)
        assert work.slow_reason == ""
        sums[own] = work.clipped_sum(rows, CLIP).vector
        assert relative_error(sums[own], naive(work, rows, CLIP)) < 1e-10
        assert work.num_faulty == 0
    assert relative_error(sums[True], sums[False]) > 0.05, "something was dropped"


@pytest.mark.parametrize(("kind", "trainable"), KINDS)
def test_leaving_a_record_out_takes_its_contribution_alone(
    tiny_folders, one_seed, kind, trainable
):
    spec = spec_with(tiny_folders[kind], kind, trainable)
    whole = work_on(spec, trainable).clipped_sum(np.arange(9), CLIP).vector
    for removed in (0, 4, 8):
        rest = TABLE.take(np.delete(np.arange(9), removed))
        fewer = work_on(spec, trainable, rest).clipped_sum(np.arange(8), CLIP).vector
        alone = work_on(spec, trainable, TABLE.take(np.array([removed])))
        own = alone.clipped_sum(np.array([0]), CLIP).vector
        assert 0.99 * CLIP < float((whole - fewer).norm()) <= CLIP * (1 + 1e-12)
        assert float((whole - fewer - own).norm()) < 1e-10 * CLIP


@pytest.mark.parametrize("micro", [1, 3, 64])
def test_neither_micro_batches_nor_retries_change_the_masks(
    tiny_folders, one_seed, micro
):
    spec = spec_with(tiny_folders["bert"], "bert")
    expected = work_on(spec, "all").clipped_sum(np.arange(9), CLIP).vector
    work = work_on(spec, "all", micro=micro)
    losses, lack = work._model.losses, [True]

    def short_of_memory(batch):
        if lack and len(batch) > 1:
            lack.clear()
            raise MemoryError
        return losses(batch)

    work._model.losses = short_of_memory
    found = work.clipped_sum(np.arange(9), CLIP).vector
    assert bool(lack) == (micro == 1)
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2-tied"])
def test_layers_that_run_again_get_the_same_masks(
    tiny_folders, one_seed, kind, one_by_one
):
    sums = []
    for checkpointing in (False, True):
        spec = spec_with(tiny_folders[kind], kind)
        spec = replace(spec, gradient_checkpointing=checkpointing)
        work = work_on(spec, "all")
        if one_by_one:
            work._clipper = OneUnitClipper(
                work._model.module, work._clipper._parameters
            )
            work.micro_batch = 1
        sums.append(work.clipped_sum(np.arange(9), CLIP).vector)
        losses = work.evaluate_losses(TABLE)
        np.testing.assert_array_equal(losses, work.evaluate_losses(TABLE))
    assert relative_error(sums[1], sums[0]) < 1e-12


def test_every_step_drops_other_values_and_looks_drop_none(tiny_folders):
    work = work_on(spec_with(tiny_folders["bert"], "bert"), "all")
    plain = work_on(spec_with(tiny_folders["bert"], "bert", own=False), "all")
    state = torch.get_rng_state()
    first, second = (work.clipped_sum(np.arange(9), CLIP).vector for _ in range(2))
    assert relative_error(first, second) > 0.05
    assert torch.equal(torch.get_rng_state(), state), "torch's own stream is put back"
    assert not any(module.training for module in work._model.module.modules())
    np.testing.assert_allclose(
        work.evaluate_losses(TABLE), plain.evaluate_losses(TABLE), atol=1e-6
    )


def test_users_are_bounded_too(tiny_folders, one_seed):
    groups = UserGroups(
        np.arange(48, dtype=np.uint8).reshape(3, 16), np.array([0, 4, 6, 9])
    )
    spec = spec_with(tiny_folders["bert"], "bert")
    sums = []
    for micro in (4, 9):
        work = LocalWork(loaded(spec), TABLE, max_micro_batch=micro, users=groups)
        work.start_phase("all", SGD)
        sums.append(work.clipped_sum(np.arange(3), CLIP).vector)
    assert relative_error(sums[1], sums[0]) < 1e-10
    assert 0 < float(sums[0].norm()) <= 3 * CLIP


@pytest.mark.parametrize(
    ("own", "trainable", "level"),
    [
        (False, "head", "hidden"),
        (False, "adapter+head", "hidden"),
        (True, "head", "none"),
        (True, "adapter+head", "none"),
    ],
)
def test_what_drops_values_is_not_kept(tiny_folders, one_seed, own, trainable, level):
    """Dropout of the adapters alone lies above the frozen layers."""
    spec = spec_with(
        tiny_folders["bert"], "bert", "adapter", lora_dropout=0.5, own=own, layers=(2,)
    )
    work = work_on(spec, trainable)
    assert work.cache_level == level
    found = work.clipped_sum(np.arange(9), CLIP).vector
    assert relative_error(found, naive(work, range(9), CLIP)) < 1e-6


def test_a_model_without_rates_is_refused(tiny_folders):
    spec = spec_with(tiny_folders["llama"], "llama")
    with pytest.raises(ModelError, match="has no dropout") as caught:
        load_model(spec)
    assert "model.lora.dropout" in caught.value.fix


def test_rates_that_no_layer_uses_are_refused(tiny_folders, monkeypatch):
    """Such as classifier_dropout in a decoder without a classifier."""
    spec = spec_with(tiny_folders["bert"], "bert")
    model = loaded(spec)
    for part in model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "dropout_prob"):
            part.dropout_prob = 0.0
    work = LocalWork(model, TABLE, max_micro_batch=4)
    with pytest.raises(ModelError, match="drops no values"):
        work.start_phase("all", SGD)


def test_other_randomness_is_refused(tiny_folders):
    model = loaded(spec_with(tiny_folders["bert"], "bert"))
    table = model.stack.embeddings.word_embeddings
    table.register_forward_hook(lambda _m, _a, out: out + 0.1 * torch.randn_like(out))
    work = LocalWork(model, TABLE, max_micro_batch=4)
    with pytest.raises(ModelError, match="beside its dropout"):
        work.start_phase("all", SGD)


def test_masks_have_the_stated_rate_and_keep_the_mean():
    with torch.random.fork_rng(devices=[]), RecordDropout() as masks:
        masks.start(torch.arange(50))
        out = functional.dropout(torch.ones(50, 40, 25), 0.2)
        again = functional.dropout(torch.ones(50, 40, 25), 0.2)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    kept = out.bool().double().mean(dim=(1, 2))
    # 50,000 draws: five standard errors of the mean are 0.009; of a record's, 0.063.
    assert abs(float(kept.mean()) - 0.8) < 0.009
    assert float((kept - 0.8).abs().max()) < 0.063
    assert len({row.numpy().tobytes() for row in out.bool()}) == 50
    equal = float((out.bool() == again.bool()).double().mean())
    assert abs(equal - (0.8**2 + 0.2**2)) < 0.02, "each call has masks of its own"


def test_an_activation_without_records_in_front_is_refused():
    with torch.random.fork_rng(devices=[]), RecordDropout() as masks:
        masks.start(torch.arange(3))
        with pytest.raises(UnsupportedUseError, match="is 4 for 3 records"):
            functional.dropout(torch.ones(4, 2), 0.2)
        off = nn.Dropout(0.5).eval()
        assert torch.equal(off(torch.ones(4, 2)), torch.ones(4, 2))
