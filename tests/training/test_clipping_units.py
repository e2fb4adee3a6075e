"""Units of several records: summed first, clipped once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pft_ray.training.clipping import PerRecordClipper
from tests.training.tiny import naive_sum, relative_error

LIMITS = pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
SEGMENTS = [
    [0, 0, 0, 1, 2, 2, 3],
    [0, 1, 2, 3, 4, 5, 6],
    [0, 0, 0, 0, 0, 0, 0],
]


class Model(nn.Module):
    """Table, norm, matrix with bias and output layer; the last may be the table."""

    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(13, 6)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 13, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, ids):
        hidden = self.norm(self.table(ids))
        return self.out(hidden + torch.tanh(self.mix(hidden)))


def build(tied, dtype=torch.float64):
    torch.manual_seed(3)
    model = Model(tied).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ids = torch.randint(0, 13, (7, 5))
    ids[1] = ids[0]  # a unit that holds a record twice: cross terms matter
    ids[4] = ids[4, 0]
    return model, ids


def losses_of(model, ids):
    logits = model(ids).transpose(1, 2)
    return nn.functional.cross_entropy(logits, ids.flip(1), reduction="none").mean(1)


def unit_gradients(model, ids, segments):
    """Returns the summed gradient of each unit, by autograd on the unit alone."""
    parameters = list(model.parameters())
    rows = []
    for unit in range(max(segments) + 1):
        part = ids[[i for i, number in enumerate(segments) if number == unit]]
        grads = torch.autograd.grad(losses_of(model, part).sum(), parameters)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(rows)


def clipped(model, ids, segments, clip_norm, limit_bytes):
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )
    return clipper.clipped_sum(
        lambda: losses_of(model, ids),
        len(ids),
        clip_norm,
        segments=torch.tensor(segments),
    )


@LIMITS
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("segments", SEGMENTS, ids=["mixed", "single", "one"])
def test_units_match_the_naive_reference(segments, tied, limit_bytes):
    model, ids = build(tied)
    gradients = unit_gradients(model, ids, segments)
    norms = gradients.norm(dim=1)
    for clip_norm in (0.1, float(norms.median()), 1e3):
        found, found_norms = clipped(model, ids, segments, clip_norm, limit_bytes)
        assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-10
        assert relative_error(found_norms, norms) < 1e-10


@LIMITS
def test_units_match_in_fp32(limit_bytes):
    model, ids = build(tied=True, dtype=torch.float32)
    gradients = unit_gradients(model, ids, SEGMENTS[0])
    found, norms = clipped(model, ids, SEGMENTS[0], 0.3, limit_bytes)
    assert relative_error(found, naive_sum(gradients, 0.3)) < 1e-5
    assert relative_error(norms, gradients.norm(dim=1)) < 1e-5


@LIMITS
def test_leaving_a_whole_unit_out_moves_the_sum_by_at_most_c(limit_bytes):
    model, ids = build(tied=True)
    segments = SEGMENTS[0]
    whole, _ = clipped(model, ids, segments, 0.2, limit_bytes)
    largest = 0.0
    for unit in range(4):
        kept = [i for i, number in enumerate(segments) if number != unit]
        rest = [segments[i] - (segments[i] > unit) for i in kept]
        part, _ = clipped(model, ids[kept], rest, 0.2, limit_bytes)
        largest = max(largest, float((whole - part).norm()))
    assert 0.2 * (1 - 1e-9) < largest <= 0.2 * (1 + 1e-12)


@LIMITS
def test_records_that_are_not_finite_leave_their_unit_alone(limit_bytes):
    """Unit 0 loses one record and keeps two; unit 1 has none left."""
    model, ids = build(tied=False)
    with torch.no_grad():
        model.table.weight[12] = math.nan
    ids = ids.clamp(max=11)
    ids[1, 2] = ids[3, 0] = 12
    found, norms = clipped(model, ids, SEGMENTS[0], 0.3, limit_bytes)
    kept = [0, 2, 4, 5, 6]
    gradients = unit_gradients(model, ids[kept], [0, 0, 1, 1, 2])
    assert torch.isnan(norms).tolist() == [False, True, False, False]
    assert relative_error(found, naive_sum(gradients, 0.3)) < 1e-10
    assert relative_error(norms[[0, 2, 3]], gradients.norm(dim=1)) < 1e-10


@LIMITS
def test_gradients_that_are_not_finite_leave_their_unit_alone(limit_bytes):
    """The loss is finite, the gradient of one record is not (root at zero)."""
    torch.manual_seed(10)
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    inputs = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]]).double()
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )

    def total(x, segments):
        return clipper.clipped_sum(
            lambda: model(x).abs().sum(1).sqrt(), len(x), 0.5, segments=segments
        )

    found, norms = total(inputs, torch.tensor([0, 0, 0]))
    expected, _ = total(inputs[[0, 2]], torch.tensor([0, 0]))
    assert torch.isfinite(norms).all()
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    "segments",
    [[1, 1, 2], [0, 2, 2], [0, 1, 0], [0, 0], [0.0, 0.0, 1.0], [[0], [0], [1]]],
)
def test_segments_that_are_no_numbering_are_refused(segments):
    model, ids = build(tied=False)
    with pytest.raises(ValueError, match="segments"):
        clipped(model, ids[:3], segments, 1.0, 0)
