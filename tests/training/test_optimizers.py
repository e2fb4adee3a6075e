"""Optimisers against their formulas; schedules against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pft_ray.errors import ConfigError, ResumeError
from pft_ray.training.optimizers import OptimizerSpec, PrivateOptimizer, schedule_factor
from pft_ray.training.types import PrivateGrad


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        ("body.weight", nn.Parameter(torch.randn(3, 2, generator=generator))),
        ("head.weight", nn.Parameter(torch.randn(2, 2, generator=generator))),
    ]


def gradients(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(10, generator=generator) for _ in range(count)]


def test_adamw_follows_its_formula_with_a_rate_for_the_head():
    named = parameters()
    spec = OptimizerSpec(
        "adamw", 0.1, num_steps=5, head_learning_rate=0.3, weight_decay=0.01
    )
    optimizer = PrivateOptimizer(named, spec)
    value = torch.cat([p.detach().flatten() for _, p in named]).double()
    rate = torch.tensor([0.1] * 6 + [0.3] * 4).double()
    first, second = torch.zeros(10).double(), torch.zeros(10).double()
    for step, grad in enumerate(gradients(5), start=1):
        optimizer.apply(PrivateGrad(grad))
        value = value * (1 - rate * 0.01)
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        update = (first / (1 - 0.9**step)) / (
            (second / (1 - 0.999**step)).sqrt() + 1e-8
        )
        value = value - rate * update
    found = torch.cat([p.detach().flatten() for _, p in named])
    assert torch.allclose(found.double(), value, atol=1e-6)
    assert all(p.grad is None for _, p in named)


def test_sgd_follows_its_formula_and_schedule():
    named = parameters()
    spec = OptimizerSpec("sgd", 0.5, num_steps=4, warmup_steps=2, decay="linear")
    optimizer = PrivateOptimizer(named, spec)
    value = torch.cat([p.detach().flatten() for _, p in named])
    for factor, grad in zip((0.5, 1.0, 1.0, 0.5), gradients(4), strict=True):
        optimizer.apply(PrivateGrad(grad))
        value = value - 0.5 * factor * grad
    found = torch.cat([p.detach().flatten() for _, p in named])
    assert torch.allclose(found, value, atol=1e-6)
    assert optimizer.state() == {}


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25, 0.25]),
        ("linear", 2, [0.5, 1, 1, 0.5, 0.5]),
        (
            "cosine",
            0,
            [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2] * 1
            + [(1 - math.sqrt(0.5)) / 2],
        ),
        ("linear", 4, [0.25, 0.5, 0.75, 1, 1]),
    ],
)
def test_schedules_depend_on_the_step_alone(decay, warmup, expected):
    spec = OptimizerSpec("sgd", 1.0, num_steps=4, warmup_steps=warmup, decay=decay)
    found = [schedule_factor(spec, step) for step in range(5)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_goes_on_bit_by_bit(name):
    spec = OptimizerSpec(name, 0.1, num_steps=6, decay="cosine")
    whole, first, second = parameters(), parameters(), parameters()
    run = PrivateOptimizer(whole, spec)
    for grad in gradients(6):
        run.apply(PrivateGrad(grad))
    run = PrivateOptimizer(first, spec)
    for grad in gradients(6)[:3]:
        run.apply(PrivateGrad(grad))
    for (_, target), (_, source) in zip(second, first, strict=True):
        target.data.copy_(source.data)
    resumed = PrivateOptimizer(second, spec)
    resumed.load_state(run.state(), run.num_applied)
    for grad in gradients(6)[3:]:
        resumed.apply(PrivateGrad(grad))
    for (_, expected), (_, found) in zip(whole, second, strict=True):
        assert torch.equal(expected, found)


def test_moments_of_other_parameters_are_refused():
    spec = OptimizerSpec("adamw", 0.1, num_steps=6)
    named = parameters()
    run = PrivateOptimizer(named, spec)
    run.apply(PrivateGrad(gradients(1)[0]))
    state = run.state()
    with pytest.raises(ResumeError, match="another trainable set"):
        PrivateOptimizer(named[:1], spec).load_state(state, 1)
    state["head.weight/exp_avg"] = torch.zeros(3)
    with pytest.raises(ResumeError, match="misfits"):
        PrivateOptimizer(named, spec).load_state(state, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"head_learning_rate": -1.0},
        {"num_steps": 0},
        {"warmup_steps": 5},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"weight_decay": math.inf},
    ],
)
def test_impossible_settings_are_refused(changes):
    settings = {"name": "adamw", "learning_rate": 0.1, "num_steps": 4} | changes
    with pytest.raises(ConfigError):
        OptimizerSpec(**settings)
