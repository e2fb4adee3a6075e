"""No record moves the clipped sum by more than C, however it was made."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pft_ray.training.clipping import PerRecordClipper
from pft_ray.training.clipping.contributions import Lookup, Outer
from pft_ray.training.clipping.factors import clip_factors
from pft_ray.training.clipping.inner import squared_norms

CLIP = 1.0


def contribution(uses, numel, clip_norm=CLIP):
    """Returns what one record adds, the way the clipper computes it."""
    norms = squared_norms(uses, numel).sqrt()
    factors = clip_factors(norms, clip_norm, numel)
    out = torch.zeros(numel, dtype=torch.float64)
    for use in uses:
        use.add_weighted_sum(out, factors)
    return out, norms


def exact_gradient(uses, numel):
    """Returns the record's gradient in extended precision."""
    total = np.zeros(numel, dtype=np.longdouble)
    for use in uses:
        right = use.right[0].numpy().astype(np.longdouble)
        if isinstance(use, Lookup):
            table = np.zeros((use.num_rows, right.shape[1]), dtype=np.longdouble)
            np.add.at(table, use.ids[0].numpy(), right)
        else:
            table = use.left[0].numpy().astype(np.longdouble).T @ right
        total += table.ravel()
    return total


def cancelling(num_tokens, width, scale, seed, rest=1e-4):
    """Two halves of tokens whose outer products cancel up to ``rest``."""
    generator = torch.Generator().manual_seed(seed)
    half = num_tokens // 2
    left = torch.randn(1, half, width, generator=generator)
    right = torch.randn(1, half, width, generator=generator)
    noise = torch.randn(1, half, width, generator=generator)
    left = torch.cat([left, left], dim=1)
    right = torch.cat([right, -right + rest * noise], dim=1)
    return Outer(left * scale, right * scale)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 30.0, 1e6, 1e15])
@pytest.mark.parametrize("width", [24, 80])
def test_cancelling_tokens_are_never_underestimated(scale, width):
    """fp32 inner products would let such a record through at 1.6 times C."""
    for seed in range(40):
        use = cancelling(16, width, scale, seed)
        added, norms = contribution([use], width * width)
        true = exact_gradient([use], width * width)
        true_norm = float(np.sqrt((true**2).sum()))
        assert float(norms[0]) >= true_norm
        assert float(added.norm()) <= CLIP


def test_exact_cancellation_of_tied_uses_adds_next_to_nothing():
    """The table's gradient is minus the output layer's; cross terms say so."""
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 9, (1, 6), generator=generator)
        right = 10.0 ** (seed % 9) * torch.randn(1, 6, 5, generator=generator)
        one_hot = nn.functional.one_hot(ids, 9).float()
        uses = [Lookup(ids, right, 9), Outer(-one_hot, right)]
        added, norms = contribution(uses, 45)
        assert math.isfinite(float(norms[0]))
        assert float(added.norm()) <= CLIP * 1e-6
        doubled = [Lookup(ids, right, 9), Outer(one_hot, right)]
        added, norms = contribution(doubled, 45)
        true = exact_gradient(doubled, 45)
        assert float(norms[0]) >= float(np.sqrt((true**2).sum()))
        assert float(added.norm()) <= CLIP


@settings(max_examples=300, deadline=None)
@given(
    norm=st.floats(0, 1e300),
    clip_norm=st.floats(1e-30, 1e30),
    size=st.integers(1, 10**9),
)
def test_factors_bound_the_norm(norm, clip_norm, size):
    norms = torch.tensor([norm], dtype=torch.float64)
    factor = float(clip_factors(norms, clip_norm, size)[0])
    assert 0 <= factor <= 1
    assert factor * norm <= clip_norm
    if norm < clip_norm * (1 - 1e-6):
        assert factor == 1
    elif norm < 1e150:
        assert factor * norm >= min(norm, clip_norm) * (1 - 1e-6)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_norms_that_are_not_finite_give_factor_zero(norm):
    assert float(clip_factors(torch.tensor([norm]).double(), 1.0, 5)[0]) == 0.0


class TiedModel(nn.Module):
    """Tied table and output, a layer used twice, both norms, Linear layers."""

    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, ids):
        hidden = self.norm(self.table(ids))
        hidden = hidden + torch.tanh(self.mix(hidden)) - self.mix(hidden.flip(1))
        return self.out(self.rms(hidden))


def losses_of(model, ids):
    logits = model(ids).transpose(1, 2)
    return nn.functional.cross_entropy(logits, ids, reduction="none").mean(1)


def adversarial_ids(rng, num, length):
    """Records of one repeated token, of alternating tokens, and random ones."""
    ids = rng.integers(0, 11, (num, length))
    ids[0] = ids[0, 0]
    ids[1, ::2] = ids[1, 0]
    return ids


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
def test_leaving_one_record_out_moves_the_sum_by_at_most_c(tied, limit_bytes, dtype):
    rng = np.random.default_rng(7)
    torch.manual_seed(7)
    model = TiedModel(tied).to(dtype)
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )
    largest = 0.0
    for trial in range(60):
        scale = float(10.0 ** rng.uniform(-3, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=scale)
        ids = torch.from_numpy(adversarial_ids(rng, 5, int(rng.integers(2, 9))))
        clip_norm = float(10.0 ** rng.uniform(-4, 2))
        whole = clipper.clipped_sum(partial(losses_of, model, ids), 5, clip_norm)[0]
        for left_out in range(5):
            rest = ids[[i for i in range(5) if i != left_out]]
            part = clipper.clipped_sum(partial(losses_of, model, rest), 4, clip_norm)[0]
            moved = float((whole - part).norm()) / clip_norm
            largest = max(largest, moved)
            # fp32: the others' own gradients may move in their last bits.
            assert moved <= 1 + (1e-9 if dtype == torch.float64 else 1e-5), trial
    assert largest > 0.99


def bad_model(kind):
    """Returns a model in which token 3 alone makes its record not finite."""
    torch.manual_seed(9)
    model = TiedModel(tied=False)
    with torch.no_grad():
        model.table.weight[3] = {"nan": math.nan, "inf": math.inf, "huge": 3e38}[kind]
    return model


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
@pytest.mark.parametrize("kind", ["nan", "inf", "huge"])
def test_a_record_that_is_not_finite_is_exactly_absent(kind, limit_bytes):
    model = bad_model(kind)
    named = list(model.named_parameters())
    clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
    ids = torch.tensor([[1, 2, 4], [5, 3, 6], [7, 8, 9]])
    found, norms = clipper.clipped_sum(lambda: losses_of(model, ids), 3, 1.0)
    assert torch.isnan(norms).tolist() == [False, True, False]
    rest, _ = clipper.clipped_sum(lambda: losses_of(model, ids[[0, 2]]), 2, 1.0)
    assert torch.isfinite(found).all()
    assert float((found - rest).norm()) < 1e-5
    alone, _ = clipper.clipped_sum(lambda: losses_of(model, ids[[1]]), 1, 1.0)
    assert not alone.any()


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
def test_a_gradient_that_is_not_finite_is_exactly_absent(limit_bytes):
    """The loss is finite, its gradient is infinite (sqrt at zero)."""
    torch.manual_seed(10)
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    inputs = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]])

    def losses(x):
        return model(x).abs().sum(1).sqrt()

    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )
    found, norms = clipper.clipped_sum(lambda: losses(inputs), 3, 1.0)
    rest, _ = clipper.clipped_sum(lambda: losses(inputs[[0, 2]]), 2, 1.0)
    assert torch.isnan(norms).tolist() == [False, True, False]
    assert float((found - rest).norm()) < 1e-12


def test_a_lone_loss_that_is_not_finite_is_dropped():
    """Gradients are fine, but the loss itself is infinite."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(3, 2))
    inputs = torch.randn(3, 3)
    shift = torch.tensor([0.0, math.inf, 0.0])
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    found, norms = clipper.clipped_sum(lambda: model(inputs).sum(1) + shift, 3, 1.0)
    rest, _ = clipper.clipped_sum(lambda: model(inputs[[0, 2]]).sum(1), 2, 1.0)
    assert torch.isnan(norms).tolist() == [False, True, False]
    assert float((found - rest).norm()) < 1e-6
