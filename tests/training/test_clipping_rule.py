"""The cost rule as it is, through the whole clipper: every way, at its own sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pft_ray.training.clipping import PerRecordClipper, gradients
from tests.training.tiny import naive_sum, relative_error

ROWS, COLS, NUM_RECORDS = 256, 192, 6


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(COLS, ROWS, bias=False).to(dtype)


def losses_of(model: nn.Linear, inputs: torch.Tensor):
    weights = torch.linspace(-1, 1, ROWS, dtype=inputs.dtype)
    return lambda: (torch.tanh(model(inputs)) * weights).sum(2).square().mean(1)


def naive(model: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the plain gradients in fp64, one record at a time."""
    wide = layer(torch.float64)
    wide.load_state_dict(model.state_dict())
    rows = []
    for one in inputs.double():
        (grad,) = torch.autograd.grad(losses_of(wide, one[None])()[0], [wide.weight])
        rows.append(grad.flatten())
    return torch.stack(rows)


def ways_taken(monkeypatch) -> list[str]:
    """Notes which functions held factors go through."""
    taken: list[str] = []
    for name in ("squared_norms", "tile_norms", "add_tiles"):
        real = getattr(gradients, name)

        def noted(*args, real=real, name=name):
            taken.append(name)
            return real(*args)

        monkeypatch.setattr(gradients, name, noted)
    return taken


@pytest.mark.parametrize(
    ("num_tokens", "limit_bytes", "expected"),
    [
        (4, 1 << 30, ["squared_norms"]),
        (64, 1 << 30, []),
        (4, 0, ["squared_norms"]),
        (40, 0, ["squared_norms", "add_tiles"]),
        (300, 0, ["tile_norms", "add_tiles"]),
    ],
)
def test_each_way_is_taken_where_it_is_cheapest_and_is_exact(
    monkeypatch, num_tokens, limit_bytes, expected
):
    model = layer()
    inputs = torch.randn(NUM_RECORDS, num_tokens, COLS)
    grads = naive(model, inputs)
    clip_norm = float(grads.norm(dim=1).median())
    taken = ways_taken(monkeypatch)
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )
    found, norms = clipper.clipped_sum(losses_of(model, inputs), NUM_RECORDS, clip_norm)
    assert taken == expected
    assert relative_error(found, naive_sum(grads, clip_norm)) < 1e-5
    assert relative_error(norms, grads.norm(dim=1)) < 1e-5


def test_what_is_formed_does_not_depend_on_the_batch():
    """A limit that four records cross and three do not would move the three."""
    model = layer()
    inputs = torch.randn(4, 40, COLS)
    limit = int(3.5 * 4 * ROWS * COLS)
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit, most_records=4
    )
    _, norms = clipper.clipped_sum(losses_of(model, inputs), 4, 1.0)
    _, fewer = clipper.clipped_sum(losses_of(model, inputs[:3]), 3, 1.0)
    assert torch.equal(norms[:3], fewer)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
def test_a_gradient_beyond_fp32_is_exactly_absent(limit_bytes):
    """Its factors are finite, and so is its norm in fp64."""
    model = layer()
    with torch.no_grad():
        model.weight.mul_(1e-12)
    inputs = torch.randn(NUM_RECORDS, 40, COLS)
    scale = torch.ones(NUM_RECORDS)
    inputs[1], scale[1] = inputs[1] * 1e14, 1e25
    named = list(model.named_parameters())

    def total(rows):
        clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
        return clipper.clipped_sum(
            lambda: model(inputs[rows]).sum((1, 2)) * scale[rows], len(rows), 0.1
        )

    whole, norms = total([0, 1, 2, 3, 4, 5])
    rest, _ = total([0, 2, 3, 4, 5])
    assert bool(torch.isnan(norms[1]))
    assert torch.isfinite(whole).all()
    assert relative_error(whole, rest) < 1e-7


def test_a_tile_that_overflows_adds_nothing():
    """Partial sums may overflow although the gradient would not."""
    left = torch.full((1, 2, 3), 1e20)
    right = torch.full((1, 2, 2), 1e20)
    right[0, 1] *= -1
    use = gradients.Outer(left, right)
    out = torch.zeros(6, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    gradients.add_tiles(out, [use], one, one)
    assert torch.isfinite(out).all()
    assert float(out.norm()) <= 1
