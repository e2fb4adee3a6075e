"""The families that people fine-tune: exact, or one record at a time and exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers.modeling_layers import GradientCheckpointingLayer

from pft_ray.training.clipping import OneUnitClipper, PerRecordClipper, choose_clipper
from tests.training.families import (
    DECODERS,
    EAGER_ONLY,
    ENCODERS,
    ONE_BY_ONE,
    build,
    is_decoder,
    losses,
    records,
    used,
)
from tests.training.tiny import naive_sum, relative_error

FAMILIES = (*DECODERS, *ENCODERS)
# Where the model computes in fp32 inside, autograd differs from itself by 1e-9.
TOLERANCE = 5e-9


def gradients_of(name, model, named, ids, mask):
    rows = []
    for i in range(len(ids)):
        loss = losses(model, name, ids[i : i + 1], mask[i : i + 1])[0]
        grads = torch.autograd.grad(loss, [p for _, p in named])
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(rows)


def check(name, model, named, *, limit_bytes=1 << 30, by_position=False):
    ids, mask = records()
    gradients = gradients_of(name, model, named, ids, mask)
    norms = gradients.norm(dim=1)
    clip_norm = float(norms.median())
    clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
    found, found_norms = clipper.clipped_sum(
        lambda: losses(model, name, ids, mask, by_position=by_position), 3, clip_norm
    )
    assert relative_error(found, naive_sum(gradients, clip_norm)) < TOLERANCE
    assert relative_error(found_norms, norms) < TOLERANCE


def everything(name, model):
    ids, mask = records()
    return used(model, losses(model, name, ids, mask).sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_full_fine_tuning_is_exact(name):
    model = build(name)
    check(name, model, everything(name, model))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - EAGER_ONLY))
def test_eager_attention_and_held_gradients_are_exact(name):
    model = build(name, attention="eager")
    check(name, model, everything(name, model), limit_bytes=0, by_position=True)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPTNeoX", "Falcon", "OPT"])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_embeddings_are_exact(name, tied):
    model = build(name, tie_word_embeddings=tied)
    named = everything(name, model)
    heads = [n for n, _ in named if "lm_head" in n or "embed_out" in n]
    assert len(heads) == (0 if tied else 1)
    check(name, model, named)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_on_every_linear_layer_are_exact(name):
    kind = None if name in DECODERS else "FEATURE_EXTRACTION"
    config = LoraConfig(r=2, target_modules="all-linear", task_type=kind)
    if name == "Phi3":  # its fused layers
        config = LoraConfig(r=2, target_modules=["qkv_proj", "gate_up_proj"])
    model = get_peft_model(build(name), config).double().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in parameter_name)
    ids, mask = records()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(
        losses(model, name, ids, mask).sum(), [p for _, p in trained], allow_unused=True
    )
    for (_, parameter), grad in zip(trained, grads, strict=True):
        parameter.requires_grad_(grad is not None)
    check(name, model, [(n, p) for n, p in trained if p.requires_grad])


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Qwen3", "OPT", "Bert", "Roberta"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_exact(name, reentrant):
    model = build(name)
    named = everything(name, model)
    ids, mask = records()
    gradients = gradients_of(name, model, named, ids, mask)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    calls = [0]

    def count(_module, _args):
        calls[0] += 1

    for layer in layers:
        layer.training = True  # its dropout modules stay off
        layer.register_forward_pre_hook(count)
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.0
    clipper = PerRecordClipper(model, named)
    found, _ = clipper.clipped_sum(lambda: losses(model, name, ids, mask), 3, 0.5)
    assert relative_error(found, naive_sum(gradients, 0.5)) < TOLERANCE
    assert calls[0] >= len(layers)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
def test_only_biases_and_norms_are_exact(name):
    model = build(name)
    named = everything(name, model)
    for parameter_name, parameter in named:
        parameter.requires_grad_(parameter.ndim == 1 or "norm" in parameter_name)
    check(name, model, [(n, p) for n, p in named if p.requires_grad])


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma2", "ModernBert", "OPT"])
def test_fp32_is_within_1e_5(name):
    model = build(name, dtype=torch.float32)
    named = everything(name, model)
    ids, mask = records()
    gradients = gradients_of(name, model, named, ids, mask)
    clip_norm = float(gradients.norm(dim=1).median())
    clipper = PerRecordClipper(model, named)
    found, _ = clipper.clipped_sum(lambda: losses(model, name, ids, mask), 3, clip_norm)
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_trial_takes_the_fast_way(name):
    model = build(name)
    named = everything(name, model)
    ids, mask = records()
    clipper, reason = choose_clipper(
        model, named, lambda rows: losses(model, name, ids[rows], mask[rows]), 3
    )
    assert isinstance(clipper, PerRecordClipper), reason


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_what_has_no_batched_gradient_runs_one_by_one(name):
    model = build(name, dtype=torch.float32)
    ids, mask = records()
    named = used(model, losses(model, name, ids, mask).sum())
    clipper, reason = choose_clipper(
        model, named, lambda rows: losses(model, name, ids[rows], mask[rows]), 3
    )
    assert isinstance(clipper, OneUnitClipper)
    assert reason
    total = torch.zeros(clipper.num_parameters, dtype=torch.float64)
    gradients = gradients_of(name, model, named, ids, mask)
    for i in range(3):
        row = slice(i, i + 1)
        one, _ = clipper.clipped_sum(
            lambda r=row: losses(model, name, ids[r], mask[r]), 1, 0.5
        )
        assert float(one.norm()) <= 0.5
        total += one
    assert relative_error(total, naive_sum(gradients, 0.5)) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["Llama", "Qwen2", "Gemma", "GPT2", "OPT", "Bert", "Roberta"]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    layers=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 4]),
    held=st.booleans(),
    clip=st.floats(0.01, 100.0),
)
def test_any_shape_is_exact(name, lengths, layers, heads, held, clip):
    """Drawn configurations, lengths, paddings and batch sizes."""
    changes = {"num_hidden_layers": layers, "num_attention_heads": heads}
    if name == "GPT2":
        changes = {"n_layer": layers, "n_head": heads}
    if name in ("Llama", "Qwen2", "Gemma"):
        changes["num_key_value_heads"] = 1
    model = build(name, **changes)
    width = max(lengths)
    ids, _ = records(max(2, len(lengths)), width)
    ids = ids[: len(lengths)]
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask.bool(), ids, 0)
    full = build(name, **changes)
    trained = {n for n, _ in everything(name, full)}
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if is_decoder(name) and width == 1:
        return  # nothing to predict
    gradients = gradients_of(name, model, named, ids, mask)
    clipper = PerRecordClipper(model, named, limit_bytes=0 if held else 1 << 30)
    found, norms = clipper.clipped_sum(
        lambda: losses(model, name, ids, mask), len(lengths), clip
    )
    expected = naive_sum(gradients, clip).nan_to_num()
    scale = max(float(expected.norm()), 1e-6)
    assert float((found - expected).norm()) < TOLERANCE * scale
    assert float((norms - gradients.norm(dim=1)).abs().max()) < TOLERANCE * max(
        1.0, float(norms.max())
    )
