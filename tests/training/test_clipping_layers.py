"""Single layers: shapes, reuse and padding rows against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from pft_ray.training.clipping import PerRecordClipper
from tests.training.tiny import naive_sum, relative_error


def both_sums(model, losses_of, inputs, clip_norm, limit_bytes):
    """Returns the clipped sum of the clipper and of plain autograd."""
    named = list(model.named_parameters())
    clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
    found, _ = clipper.clipped_sum(lambda: losses_of(inputs), len(inputs), clip_norm)
    rows = []
    for i in range(len(inputs)):
        grads = torch.autograd.grad(
            losses_of(inputs[i : i + 1])[0], [p for _, p in named]
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    return found, naive_sum(torch.stack(rows), clip_norm)


LIMITS = pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])


LAYERS = [
    nn.Linear(6, 5),
    nn.Linear(6, 5, bias=False),
    Conv1D(5, 6),
    nn.LayerNorm(6),
    nn.LayerNorm(6, bias=False),
    nn.RMSNorm(6),
    nn.RMSNorm(6, eps=1e-3),
    LlamaRMSNorm(6),
]
SHAPES = [(4, 6), (4, 3, 6), (4, 2, 3, 6)]
WIDE = [(nn.LayerNorm((3, 6)), shape) for shape in SHAPES[1:]]


@LIMITS
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(layer, shape) for layer in LAYERS for shape in SHAPES] + WIDE,
    ids=lambda value: str(value).split("(", maxsplit=1)[0] or str(len(value)),
)
def test_each_layer_matches_autograd(layer, shape, limit_bytes):
    torch.manual_seed(1)
    model = nn.Sequential(layer).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    inputs = torch.randn(shape, dtype=torch.float64)
    target = torch.randn(1, dtype=torch.float64)
    found, expected = both_sums(
        model,
        lambda x: (model(x) - target).pow(2).flatten(1).mean(1),
        inputs,
        0.6,
        limit_bytes,
    )
    assert relative_error(found, expected) < (
        5e-8 if isinstance(layer, LlamaRMSNorm) else 1e-10
    )


class Shared(nn.Module):
    """One matrix as table, as output layer, and as a layer called twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 5, padding_idx=0)
        self.again = nn.Embedding(12, 5)
        self.out = nn.Linear(5, 12, bias=False)
        self.twice = nn.Linear(5, 5)
        self.out.weight = self.again.weight = self.table.weight

    def forward(self, ids):
        hidden = self.table(ids) + 0.5 * self.again(ids.flip(1))
        return self.out(self.twice(torch.tanh(self.twice(hidden))))


@LIMITS
def test_every_use_of_a_shared_parameter_counts(limit_bytes):
    torch.manual_seed(2)
    model = Shared().double()
    ids = torch.randint(0, 12, (5, 6))
    ids[:, 0] = 0  # a padding row among the tokens

    def losses(x):
        logits = model(x).transpose(1, 2)
        return nn.functional.cross_entropy(logits, x, reduction="none").mean(1)

    for clip_norm in (0.05, 0.5, 50.0):
        found, expected = both_sums(model, losses, ids, clip_norm, limit_bytes)
        assert relative_error(found, expected) < 1e-10


@LIMITS
def test_long_records_of_small_layers_form_their_gradients(limit_bytes):
    """T(m + n) > mn: held factors cost more than the gradient itself."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    inputs = torch.randn(4, 50, 3, dtype=torch.float64)
    found, expected = both_sums(
        model, lambda x: model(x).tanh().sum((1, 2)), inputs, 1.0, limit_bytes
    )
    assert relative_error(found, expected) < 1e-10


def test_only_a_bias_can_be_trained():
    torch.manual_seed(4)
    layer = nn.Linear(4, 3).double()
    layer.weight.requires_grad_(False)
    model = nn.Sequential(nn.Linear(4, 4).double().requires_grad_(False), layer)
    named = [("1.bias", layer.bias)]
    inputs = torch.randn(5, 4, dtype=torch.float64)
    clipper = PerRecordClipper(model, named)
    found, norms = clipper.clipped_sum(lambda: model(inputs).pow(2).sum(1), 5, 1.0)
    rows = 2 * model(inputs).detach()
    assert relative_error(found, naive_sum(rows, 1.0)) < 1e-12
    assert relative_error(norms, rows.norm(dim=1)) < 1e-12


def test_half_precision_inputs_are_clipped_in_wider_arithmetic():
    torch.manual_seed(5)
    model = nn.Linear(8, 8).bfloat16()
    inputs = torch.randn(6, 8).bfloat16()
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    for row in range(6):
        one = inputs[row : row + 1]
        found, norms = clipper.clipped_sum(
            lambda x=one: model(x).pow(2).sum(1), 1, 0.05
        )
        assert norms[0] > 0.05
        assert float(found.norm()) <= 0.05
