"""What cannot be clipped per record is refused by name, never skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pft_ray.errors import ModelError, PlanError
from pft_ray.training.batch import batch_of
from pft_ray.training.clipping import PerRecordClipper
from tests.training.tiny import loaded, random_table, spec_of


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.inner(x) * self.gain


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


class PlusOneRMSNorm(nn.Module):
    """As in Gemma: (1 + weight) * x / rms(x)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.eps = 1e-6

    def forward(self, x):
        norm = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return norm * (1 + self.weight)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), Scaled()), "'1' of type Scaled"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "'1' is a BatchNorm1d"),
        (nn.Sequential(ScaledEmbedding(4, 3)), "'0' of type ScaledEmbedding"),
        (nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), "'0' of type Embedding"),
        (
            nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True)),
            "'0' of type Embedding",
        ),
        (nn.Sequential(PlusOneRMSNorm()), "'0' of type PlusOneRMSNorm"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "type MultiheadAttention"),
        (nn.Sequential(nn.Conv1d(3, 3, 1)), "type Conv1d"),
        (nn.Sequential(nn.GRU(3, 3)), "type GRU"),
    ],
)
def test_modules_without_a_rule_are_named(module, words):
    with pytest.raises(ModelError, match=words) as caught:
        PerRecordClipper(module, list(module.named_parameters()))
    assert caught.value.fix


def test_frozen_batch_norm_is_refused_too():
    module = nn.Sequential(nn.BatchNorm1d(3).requires_grad_(False), nn.Linear(3, 3))
    with pytest.raises(ModelError, match="BatchNorm1d"):
        PerRecordClipper(module, list(module[1].named_parameters()))


def test_modules_without_a_rule_may_be_frozen():
    module = nn.Sequential(Scaled().requires_grad_(False), nn.Linear(3, 3))
    named = list(module[1].named_parameters())
    assert PerRecordClipper(module, named).num_parameters == 12


def test_dora_is_refused(tiny_folders):
    model = loaded(spec_of(tiny_folders["llama"], "llama"), torch.float32).module
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    model = get_peft_model(model, config)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ModelError, match="lora_magnitude_vector"):
        PerRecordClipper(model, named)


def test_lora_on_an_embedding_is_refused(tiny_folders):
    model = loaded(spec_of(tiny_folders["llama"], "llama"), torch.float32).module
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens"]))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ModelError, match="embed_tokens"):
        PerRecordClipper(model, named)


def test_trainable_parameters_must_be_listed():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ModelError, match="not in the list"):
        PerRecordClipper(module, list(module[0].named_parameters()))


def test_listed_parameters_must_be_trainable_and_the_models_own():
    module = nn.Sequential(nn.Linear(3, 3).requires_grad_(False))
    with pytest.raises(ModelError, match=r"'0\.weight' is frozen"):
        PerRecordClipper(module, [("0.weight", module[0].weight)])


def test_a_parameter_without_gradient_is_named():
    module = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 3)
    with pytest.raises(ModelError, match=r"'unused\.weight' got no gradient"):
        clipper.clipped_sum(lambda: module["used"](x).sum(1), 2, 1.0)


def test_a_weight_read_outside_its_module_is_named():
    module = nn.Sequential(nn.Linear(3, 3))
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 3)

    def losses():
        return (module(x) @ module[0].weight).sum(1)

    with pytest.raises(ModelError, match=r"'0\.weight' is used outside"):
        clipper.clipped_sum(losses, 2, 1.0)
    assert module[0].weight.grad is None


def test_scalar_and_constant_losses_are_refused():
    module = nn.Linear(3, 1)
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 3)
    with pytest.raises(ModelError, match="one loss a record"):
        clipper.clipped_sum(lambda: module(x).mean(), 2, 1.0)
    with pytest.raises(ModelError, match="does not depend"):
        clipper.clipped_sum(lambda: torch.zeros(2), 2, 1.0)


def test_a_lost_record_dimension_is_refused():
    """A broadcast position table sees one row for all records."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 3)

        def forward(self, x):
            return x + self.table(torch.arange(4)[None])

    module = Positions()
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 4, 3)
    with pytest.raises(ModelError, match=r"'table\.weight' saw a first dimension of 1"):
        clipper.clipped_sum(lambda: module(x).sum((1, 2)), 2, 1.0)


def test_gpt2_without_explicit_positions_is_refused(tiny_folders):
    """The library's default positions are one row for all records."""
    model = loaded(spec_of(tiny_folders["gpt2"], "gpt2"))
    named = model.set_trainable("all")
    batch = batch_of(random_table(3), np.arange(3))

    def losses():
        return model.module(input_ids=batch.input_ids).logits.sum((1, 2))

    with pytest.raises(ModelError, match="wpe"):
        PerRecordClipper(model.module, named).clipped_sum(losses, 3, 1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_clip_norms_must_be_positive_and_finite(clip_norm):
    module = nn.Linear(3, 1)
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    with pytest.raises(PlanError, match="clip_norm"):
        clipper.clipped_sum(lambda: module(torch.randn(2, 3))[:, 0], 2, clip_norm)
