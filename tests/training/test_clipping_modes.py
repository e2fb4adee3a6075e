"""Flat, automatic and per-layer clipping: equal to a reference, never above C."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.training.clipping import OneUnitClipper, PerRecordClipper
from pft_ray.training.clipping.modes import factors_of, groups_of
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import (
    loaded,
    naive_gradients,
    random_table,
    relative_error,
    spec_of,
)

SGD = OptimizerSpec(name="sgd", learning_rate=0.1, num_steps=10)
MODES = ("flat", "automatic", "per_layer")


def reference(gradients, named, clip_norm, mode):
    """Returns the (B, P) bounded gradients, straight from the definitions."""
    if mode == "flat":
        norms = gradients.norm(dim=1, keepdim=True)
        return gradients * (clip_norm / norms).clamp(max=1)
    if mode == "automatic":
        return clip_norm * gradients / (gradients.norm(dim=1, keepdim=True) + 0.01)
    layers = []
    for name, parameter in named:
        numbers = [int(part) for part in name.split(".") if part.isdecimal()]
        layers += [numbers[0] if numbers else "rest"] * parameter.numel()
    kinds = sorted(set(layers), key=str)
    out = torch.zeros_like(gradients)
    for kind in kinds:
        mask = torch.tensor([layer == kind for layer in layers])
        part = gradients[:, mask]
        share = clip_norm / len(kinds) ** 0.5
        norms = part.norm(dim=1, keepdim=True)
        out[:, mask] = part * (share / norms.clamp(min=1e-30)).clamp(max=1)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trainable", ["all", "head"])
def test_each_mode_equals_its_definition(tiny_folders, mode, trainable):
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    table = random_table(6, seed=3)
    named = model.set_trainable(trainable)
    gradients = naive_gradients(model, named, table)
    clip_norm = float(gradients.norm(dim=1).median())
    bounded = reference(gradients, named, clip_norm, mode)
    assert bounded.norm(dim=1).max() <= clip_norm * (1 + 1e-12)
    work = LocalWork(model, table, max_micro_batch=4)
    work.start_phase(trainable, SGD, mode)
    found = work.clipped_sum(np.arange(6), clip_norm).vector
    assert relative_error(found, bounded.sum(0)) < 1e-10
    for row in range(6):
        one = work.clipped_sum(np.array([row]), clip_norm).vector
        assert float(one.norm()) <= clip_norm
    if mode != "flat" and trainable == "all":
        other = reference(gradients, named, clip_norm, "flat").sum(0)
        assert relative_error(found, other) > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_one_unit_at_a_time_gives_the_same(mode):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    named = list(model.named_parameters())
    both = [
        kind(model, named, mode=mode).clipped_sum(
            lambda: model(x).pow(2).sum(1), 1, 0.3
        )[0]
        for kind in (PerRecordClipper, OneUnitClipper)
    ]
    assert relative_error(both[1], both[0]) < 1e-12


@given(
    norms=st.lists(
        st.lists(st.floats(0, 1e300), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    clip_norm=st.floats(1e-6, 1e6),
    mode=st.sampled_from(MODES),
)
def test_no_unit_is_above_c_over_all_groups(norms, clip_norm, mode):
    if mode != "per_layer":
        norms = norms[:1]
    table = torch.tensor(norms, dtype=torch.float64)
    factors = factors_of(table, clip_norm, [1000] * len(norms), mode)
    scaled = (factors * table).square().sum(0).sqrt()
    assert (scaled <= clip_norm).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_a_norm_that_is_not_finite_gives_zero(mode, value):
    norms = torch.tensor([[value, 1.0]], dtype=torch.float64)
    factors = factors_of(norms, 1.0, [10], mode)
    assert factors[0, 0] == 0
    assert factors[0, 1] > 0


def test_groups_are_layers_and_the_rest():
    names = ["embed.weight", "h.0.a", "h.1.a", "h.0.b", "head.weight"]
    assert groups_of(names, "per_layer") == [0, 1, 2, 1, 0]
    assert groups_of(names, "flat") == [0] * 5
