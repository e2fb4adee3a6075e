"""What cannot be clipped per record is refused by name, never skipped."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pft_ray.errors import ModelError, PlanError
from pft_ray.training.clipping import (
    OneUnitClipper,
    PerRecordClipper,
    UnsupportedUseError,
    choose_clipper,
)
from tests.training.tiny import loaded, naive_sum, relative_error, spec_of


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (nn.MultiheadAttention(4, 2), (torch.randn(2, 3, 4),) * 3, "in_proj_weight"),
        (nn.Conv1d(3, 3, 1), (torch.randn(2, 3, 3),), "'weight' is used by conv1d"),
        (nn.GRU(3, 3), (torch.randn(2, 3, 3),), "'weight_ih_l0'"),
    ],
)
def test_uses_that_are_not_known_are_named(module, inputs, words):
    clipper = PerRecordClipper(module, list(module.named_parameters()))

    def losses():
        out = module(*inputs)
        return (out[0] if isinstance(out, tuple) else out).sum((1, 2))

    with pytest.raises(UnsupportedUseError, match=words) as caught:
        clipper.clipped_sum(losses, 2, 1.0)
    assert caught.value.fix


def test_batch_norm_is_refused():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ModelError, match="'1' is a BatchNorm1d"):
        PerRecordClipper(module, list(module.named_parameters()))


def test_frozen_batch_norm_is_refused_too():
    module = nn.Sequential(nn.BatchNorm1d(3).requires_grad_(False), nn.Linear(3, 3))
    with pytest.raises(ModelError, match="BatchNorm1d"):
        PerRecordClipper(module, list(module[1].named_parameters()))


def naive(model, named, losses_of, num_records):
    rows = []
    for i in range(num_records):
        loss = losses_of(slice(i, i + 1))[0]
        grads = torch.autograd.grad(loss, [p for _, p in named])
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(rows)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "bias": "all"},
    ],
    ids=["dora", "embedding", "rslora", "modules-to-save", "bias"],
)
def test_peft_adapters_of_all_kinds_are_exact(tiny_folders, config):
    model = loaded(spec_of(tiny_folders["llama"], "llama")).module
    model = get_peft_model(model, LoraConfig(r=2, **config)).eval()
    torch.manual_seed(7)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for _, parameter in named:
            parameter.add_(0.2 * torch.randn_like(parameter))
    ids = torch.randint(0, 40, (4, 6))

    def losses_of(rows):
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        targets = ids[rows][:, 1:]
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none"
        )
        return nll.mean(1)

    gradients = naive(model, named, losses_of, 4)
    clip_norm = float(gradients.norm(dim=1).median())
    clipper = PerRecordClipper(model, named)
    found, _ = clipper.clipped_sum(lambda: losses_of(slice(0, 4)), 4, clip_norm)
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 5e-9


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
    x = torch.randn(2, 3)
    with pytest.raises(ModelError, match=r"'unused\.bias' got no gradient"):
        choose_clipper(
            module,
            list(module.named_parameters()),
            lambda rows: module["used"](x[rows]).sum(1),
            2,
        )


@pytest.mark.parametrize("kind", [PerRecordClipper, OneUnitClipper])
def test_what_one_record_does_not_use_is_zero_and_no_error(kind):
    """An expert, say: an error would tell where the record's tokens went."""
    module = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}).double()
    x = torch.ones(1, 3, dtype=torch.float64)

    def losses():
        return module["a" if float(x[0, 0]) > 0 else "b"](x).sum(1)

    clipper = kind(module, list(module.named_parameters()))
    found, norms = clipper.clipped_sum(losses, 1, 10.0)
    assert found.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert float(norms[0]) == pytest.approx(2.0)


def test_a_gradient_that_passes_the_recorder_by_is_named():
    class Past(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return None, x.t() @ grad

    module = nn.Sequential(nn.Linear(3, 3))
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 3)

    def losses():
        return Past.apply(module(x).detach(), module[0].weight).sum(1)

    with pytest.raises(UnsupportedUseError, match=r"'0\.weight' is used where"):
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
    """Tokens of all records in one row, picked by their content."""
    module = nn.Linear(3, 3)
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    x = torch.randn(2, 4, 3)

    def losses():
        picked = x[x[..., 0] > -9]
        return module(picked).view(2, 4, 3).sum((1, 2))

    with pytest.raises(UnsupportedUseError, match="first dimension is 8 for 2 records"):
        clipper.clipped_sum(losses, 2, 1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_clip_norms_must_be_positive_and_finite(clip_norm):
    module = nn.Linear(3, 1)
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    with pytest.raises(PlanError, match="clip_norm"):
        clipper.clipped_sum(lambda: module(torch.randn(2, 3))[:, 0], 2, clip_norm)
