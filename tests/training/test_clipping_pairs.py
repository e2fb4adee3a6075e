"""More than 10,000 adversarial pairs, in the arithmetic that training uses (fp32)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pft_ray.training.clipping import PerRecordClipper, tiles
from pft_ray.training.clipping.contributions import (
    Direct,
    Lookup,
    Outer,
    squared_row_norms,
)
from pft_ray.training.clipping.factors import clip_factors
from pft_ray.training.clipping.gradients import RecordGradients
from tests.training.tiny import naive_sum, relative_error

NUM_RECORDS, NUM_TOKENS, ROWS, COLS = 16, 8, 12, 10
SCALES = (1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e12)


@pytest.fixture
def small_tiles(monkeypatch):
    """Every held matrix goes through tiles of a few rows."""
    monkeypatch.setattr(tiles, "_PASS_COST", 0)
    monkeypatch.setattr(tiles, "CHUNK_ELEMENTS", 6 * NUM_RECORDS * COLS)


def adversarial(generator):
    """Returns factors and tokens of records of every awkward kind.

    Cancelling tokens, cancelling tied uses, one token repeated, plain ones; each at a
    scale of its own.
    """
    shape = (NUM_RECORDS, NUM_TOKENS)
    left = torch.randn(*shape, ROWS, generator=generator)
    right = torch.randn(*shape, COLS, generator=generator)
    looked = torch.randn(*shape, COLS, generator=generator)
    ids = torch.randint(0, ROWS, shape, generator=generator)
    half = NUM_TOKENS // 2
    for i in range(0, NUM_RECORDS, 4):
        left[i, half:], right[i, half:] = left[i, :half], -right[i, :half]
        right[i, half:] += 1e-4 * torch.randn(half, COLS, generator=generator)
        looked[i] = 0
        left[i + 1] = -nn.functional.one_hot(ids[i + 1], ROWS).float()
        looked[i + 1] = right[i + 1]
        ids[i + 2] = ids[i + 2, 0]
    choice = torch.randint(0, len(SCALES), (NUM_RECORDS, 1, 1), generator=generator)
    scale = torch.tensor(SCALES)[choice]
    return left * scale.sqrt(), right * scale.sqrt(), looked * scale, ids


def contributions_of(factors):
    left, right, looked, ids = factors
    return Outer(left, right), Lookup(ids, looked, ROWS), Direct(looked.sum(1))


def total_of(factors, clip_norm, limit_bytes):
    """Returns sum and norms of one tied matrix and a bias."""
    sizes = [("matrix", ROWS * COLS), ("bias", COLS)]
    gradients = RecordGradients(sizes, len(factors[0]), limit_bytes)
    outer, lookup, direct = contributions_of(factors)
    gradients.add(0, outer)
    gradients.add(0, lookup)
    gradients.add(1, direct)
    (norms,) = gradients.squared_norms().sqrt()
    weights = clip_factors(norms, clip_norm, gradients.num_parameters)
    return gradients.weighted_sum(weights[None]), norms


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "tiled"])
def test_pairs_never_differ_by_more_than_c(limit_bytes, small_tiles):
    largest, pairs = 0.0, 0
    for seed in range(320):
        generator = torch.Generator().manual_seed(seed)
        factors = adversarial(generator)
        clip_norm = float(10.0 ** (3 * torch.randn((), generator=generator)))
        whole, _ = total_of(factors, clip_norm, limit_bytes)
        for out in range(NUM_RECORDS):
            kept = [i for i in range(NUM_RECORDS) if i != out]
            part, _ = total_of([f[kept] for f in factors], clip_norm, limit_bytes)
            moved = float((whole - part).norm()) / clip_norm
            assert moved <= 1 + 1e-12, (seed, out)
            largest, pairs = max(largest, moved), pairs + 1
    assert pairs == 5120
    assert largest > 1 - 1e-5


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "tiled"])
def test_no_norm_is_below_that_of_what_is_added(limit_bytes, small_tiles):
    for seed in range(40):
        factors = adversarial(torch.Generator().manual_seed(seed))
        for i in range(NUM_RECORDS):
            one = [f[i : i + 1] for f in factors]
            added, norms = total_of(one, math.inf, limit_bytes)
            wide = added.numpy().astype("longdouble")
            assert float((wide**2).sum() ** 0.5) <= float(norms[0]) * (1 + 1e-14)


def test_a_tile_that_comes_out_longer_is_scaled_down(small_tiles):
    """Whatever the second forming gives, no more than was measured is added."""
    left, right, looked, ids = adversarial(torch.Generator().manual_seed(1))
    uses = [Outer(left[:1], right[:1]), Lookup(ids[:1], looked[:1], ROWS)]
    measured = tiles.tile_norms(uses)
    longer = [Outer(3 * left[:1], right[:1]), Lookup(ids[:1], 3 * looked[:1], ROWS)]
    out = torch.zeros(ROWS * COLS, dtype=torch.float64)
    tiles.add_tiles(out, longer, torch.ones(1, dtype=torch.float64), measured)
    assert float(out.norm()) <= float(measured.sum().sqrt())
    assert float(out.norm()) > 0.999 * float(measured.sum().sqrt())


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-25, 1e-12, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("size", [1, 63, 64, 1000, 4096])
def test_row_norms_are_upper_bounds_at_every_scale(scale, size):
    """fp32 squares of 1e-25 vanish and those of 1e30 overflow."""
    matrix = torch.randn(5, size, generator=torch.Generator().manual_seed(size)) * scale
    exact = (matrix.numpy().astype("longdouble") ** 2).sum(1)
    found = squared_row_norms(matrix).numpy()
    assert (found >= exact * (1 - 1e-13)).all()
    assert (found <= exact * (1 + 2e-5)).all()


class Tied(nn.Module):
    """A table that is the output layer, too, with a matrix between."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(37, 10)
        self.mix = nn.Linear(10, 10)
        self.out = nn.Linear(10, 37, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.mix(self.table(ids))))


def test_tiles_match_the_naive_reference(small_tiles):
    torch.manual_seed(4)
    model = Tied()
    ids = torch.randint(0, 37, (16, 9))
    ids[0] = ids[0, 0]

    def losses(x):
        logits = model(x).transpose(1, 2)
        return nn.functional.cross_entropy(logits, x.flip(1), reduction="none").mean(1)

    named = list(model.named_parameters())
    rows = []
    for i in range(16):
        grads = torch.autograd.grad(losses(ids[i : i + 1])[0], [p for _, p in named])
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    gradients = torch.stack(rows)
    clip_norm = float(gradients.norm(dim=1).median())
    clipper = PerRecordClipper(model, named, limit_bytes=0)
    found, norms = clipper.clipped_sum(lambda: losses(ids), 16, clip_norm)
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-5
    assert relative_error(norms, gradients.norm(dim=1)) < 1e-5
