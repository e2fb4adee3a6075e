"""Opacus, where it is right, gives the same clipped sum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pft_ray.training.batch import batch_of
from pft_ray.training.clipping import PerRecordClipper
from tests.training.tiny import loaded, naive_sum, random_table, relative_error, spec_of

opacus = pytest.importorskip("opacus.grad_sample")


def opacus_gradients(module, named, losses_fn):
    """Returns Opacus' per-record gradients of the summed losses, (B, P)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = opacus.GradSampleModule(module, loss_reduction="sum", strict=False)
        wrapped.train()  # its hooks need it; every dropout is zero
        losses_fn().sum().backward()
        wrapped.eval()
    rows = torch.cat([p.grad_sample.flatten(1) for _, p in named], dim=1)
    wrapped.to_standard_module()
    for _, parameter in named:
        parameter.grad = None
    return rows


@pytest.mark.parametrize(
    ("kind", "trainable", "lora"),
    [
        ("gpt2", "all", False),
        ("gpt2", "adapter", True),
        ("llama", "all", False),
        ("bert", "all", False),
    ],
)
def test_opacus_hooks_agree_on_transformers(tiny_folders, kind, trainable, lora):
    model = loaded(spec_of(tiny_folders[kind], kind, lora=lora))
    named = model.set_trainable(trainable)
    table = random_table(5, seed=8)
    batch = batch_of(table, np.arange(5))
    clipper = PerRecordClipper(model.module, named)
    found, _ = clipper.clipped_sum(lambda: model.losses(batch), 5, 0.7)
    expected = naive_sum(
        opacus_gradients(model.module, named, lambda: model.losses(batch)), 0.7
    )
    assert relative_error(found, expected) < (2e-7 if kind == "llama" else 1e-10)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.inner = nn.Linear(6, 9)
        self.outer = nn.Linear(9, 20, bias=False)

    def forward(self, ids):
        hidden = self.rms(self.norm(self.table(ids)))
        return self.outer(torch.tanh(self.inner(hidden)))


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
def test_opacus_hooks_agree_on_plain_layers(limit_bytes):
    torch.manual_seed(0)
    model = Stack().double()
    ids = torch.randint(1, 20, (6, 5))  # Opacus trains the padding row, torch does not

    def losses():
        logits = model(ids).transpose(1, 2)
        return nn.functional.cross_entropy(logits, ids, reduction="none").mean(1)

    named = list(model.named_parameters())
    clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
    found, _ = clipper.clipped_sum(losses, 6, 0.4)
    expected = naive_sum(opacus_gradients(model, named, losses), 0.4)
    assert relative_error(found, expected) < 1e-10


def test_opacus_ghost_norms_agree_on_plain_layers():
    """Where nothing is tied; RMSNorm has no ghost rule there, so it is left out."""
    torch.manual_seed(1)
    model = Stack().double()
    model.rms = nn.Identity()
    ids = torch.randint(1, 20, (6, 5))

    def losses():
        logits = model(ids).transpose(1, 2)
        return nn.functional.cross_entropy(logits, ids, reduction="none").mean(1)

    named = list(model.named_parameters())
    clipper = PerRecordClipper(model, named, limit_bytes=0)
    _, norms = clipper.clipped_sum(losses, 6, 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = opacus.GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=0.4
        )
        wrapped.train()
        losses().sum().backward()
        expected = wrapped.get_norm_sample()
    assert relative_error(norms, expected.double()) < 1e-10
