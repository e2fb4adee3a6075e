"""The one-backward clipped sum equals one record at a time under plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.training.batch import batch_of
from pft_ray.training.clipping import PerRecordClipper
from tests.training.tiny import (
    LENGTH,
    loaded,
    naive_gradients,
    naive_sum,
    random_table,
    relative_error,
    spec_of,
)

CASES = {
    "bert-all": ("bert", "all", {}),
    "bert-head": ("bert", "head", {}),
    "bert-lora": ("bert", "adapter", {"lora": True}),
    "bert-lora-head-cls": ("bert", "adapter+head", {"lora": True, "pooling": "cls"}),
    "gpt2-all": ("gpt2", "all", {}),
    "gpt2-tied-all": ("gpt2-tied", "all", {}),
    "gpt2-lora": ("gpt2-tied", "adapter", {"lora": True}),
    "llama-all": ("llama", "all", {}),
    "llama-tied-all": ("llama-tied", "all", {}),
    "llama-lora": ("llama", "adapter", {"lora": True}),
    "llama-last-head": (
        "llama",
        "adapter+head",
        {"lora": True, "task": "classification", "pooling": "last"},
    ),
}


def clipped(model, named, table, clip_norm, limit_bytes=1 << 30):
    clipper = PerRecordClipper(model.module, named, limit_bytes=limit_bytes)
    batch = batch_of(table, np.arange(len(table)))
    return clipper.clipped_sum(lambda: model.losses(batch), len(table), clip_norm)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_reference_in_fp64(tiny_folders, case, limit_bytes):
    kind, trainable, options = CASES[case]
    model = loaded(spec_of(tiny_folders[kind], kind, **options))
    named = model.set_trainable(trainable)
    table = random_table(6, seed=1)
    gradients = naive_gradients(model, named, table)
    norms = gradients.norm(dim=1)
    clip_norm = float(norms[norms > 0].median())
    found, found_norms = clipped(model, named, table, clip_norm, limit_bytes)
    tolerance = 5e-9 if kind.startswith("llama") else 1e-10
    assert relative_error(found, naive_sum(gradients, clip_norm)) < tolerance
    assert relative_error(found_norms, norms) < tolerance
    assert (norms > clip_norm).any()
    assert (norms < clip_norm).any()


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
@pytest.mark.parametrize("case", ["bert-all", "gpt2-tied-all", "llama-tied-all"])
def test_equals_the_naive_reference_in_fp32(tiny_folders, case, limit_bytes):
    kind, trainable, options = CASES[case]
    model = loaded(spec_of(tiny_folders[kind], kind, **options), torch.float32)
    named = model.set_trainable(trainable)
    table = random_table(6, seed=2)
    gradients = naive_gradients(model, named, table)
    clip_norm = float(gradients.norm(dim=1).median())
    found, _ = clipped(model, named, table, clip_norm, limit_bytes)
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-5


def test_partly_held_gradients_give_the_same_sum(tiny_folders):
    """A limit in the middle forms some parameters and holds others."""
    model = loaded(spec_of(tiny_folders["gpt2-tied"], "gpt2-tied"))
    named = model.set_trainable("all")
    table = random_table(5, seed=3)
    everything, _ = clipped(model, named, table, 0.5)
    for limit in (1_000, 30_000, 60_000):
        found, _ = clipped(model, named, table, 0.5, limit)
        assert relative_error(found, everything) < 1e-10


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=5),
    padding=st.integers(0, 39),
    held=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_lengths_and_padding_match_the_reference(
    tiny_folders, lengths, padding, held, seed
):
    """Whatever token pads a record, only its own tokens count."""
    model = _cached_model(tiny_folders)
    named = model.set_trainable("all")
    table = random_table(len(lengths), seed=seed, lengths=lengths)
    gradients = naive_gradients(model, named, table)
    beyond = np.arange(LENGTH)[None, :] >= table.lengths[:, None]
    table.input_ids[beyond] = padding
    found, _ = clipped(model, named, table, 1.0, 0 if held else 1 << 30)
    assert relative_error(found, naive_sum(gradients, 1.0)) < 1e-10


_MODELS = {}


def _cached_model(tiny_folders):
    if "bert" not in _MODELS:
        _MODELS["bert"] = loaded(spec_of(tiny_folders["bert"], "bert"))
    return _MODELS["bert"]


def test_no_records_give_zeros_without_running_the_model(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    named = model.set_trainable("head")

    def never():
        raise AssertionError

    found, norms = PerRecordClipper(model.module, named).clipped_sum(never, 0, 1.0)
    assert found.shape == (51,)
    assert not found.any()
    assert norms.shape == (0,)


def test_plain_sum_is_the_unclipped_gradient(tiny_folders):
    model = loaded(spec_of(tiny_folders["gpt2"], "gpt2"))
    named = model.set_trainable("all")
    table = random_table(4, seed=4)
    batch = batch_of(table, np.arange(4))
    found, _ = PerRecordClipper(model.module, named).plain_sum(
        lambda: model.losses(batch), 4
    )
    expected = naive_gradients(model, named, table).sum(0)
    assert relative_error(found, expected) < 1e-10


def test_the_model_is_plain_before_and_after(tiny_folders):
    """No forward stays replaced and no gradient stays behind, also after an error."""
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    named = model.set_trainable("all")
    table = random_table(3)
    clipped(model, named, table, 1.0)

    def broken():
        model.losses(batch_of(table, np.arange(3)))
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the very error raised above
        PerRecordClipper(model.module, named).clipped_sum(broken, 3, 1.0)
    assert all("forward" not in m.__dict__ for m in model.module.modules())
    assert all(p.grad is None for p in model.module.parameters())


def test_a_forward_that_was_already_replaced_comes_back(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    named = model.set_trainable("head")
    head = model.module.head
    original = head.forward
    head.forward = replaced = lambda x: original(x)
    clipped(model, named, random_table(2), 1.0)
    assert head.__dict__["forward"] is replaced
