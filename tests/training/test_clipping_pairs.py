"""More than 10,000 adversarial pairs, in the arithmetic that training uses (fp32)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pft_ray.training.clipping import PerRecordClipper, gradients, tiles
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


WAYS = {
    "formed": (1 << 30, False, False),
    "factors": (0, False, False),
    "inner products and tiles": (0, True, True),
    "tiles twice": (0, False, True),
}


@pytest.fixture(params=list(WAYS))
def limit_bytes(request, monkeypatch):
    """Each way to norms and sums in turn, with tiles of a few rows."""
    limit, inner, tiled = WAYS[request.param]
    monkeypatch.setattr(gradients, "factors_are_cheaper", lambda *_: False)
    monkeypatch.setattr(gradients, "inner_products_are_cheaper", lambda *_: inner)
    monkeypatch.setattr(gradients, "tiles_are_cheaper", lambda _: tiled)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 6 * COLS)
    return limit


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
    found = RecordGradients(sizes, len(factors[0]), limit_bytes)
    outer, lookup, direct = contributions_of(factors)
    found.add(0, outer)
    found.add(0, lookup)
    found.add(1, direct)
    (norms,) = found.squared_norms().sqrt()
    weights = clip_factors(norms, clip_norm, found.num_parameters)
    return found.weighted_sum(weights[None]), norms


def test_pairs_never_differ_by_more_than_c(limit_bytes):
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


def test_no_norm_is_below_that_of_what_is_added(limit_bytes):
    for seed in range(40):
        factors = adversarial(torch.Generator().manual_seed(seed))
        for i in range(NUM_RECORDS):
            one = [f[i : i + 1] for f in factors]
            added, norms = total_of(one, math.inf, limit_bytes)
            wide = added.numpy().astype("longdouble")
            assert float((wide**2).sum() ** 0.5) <= float(norms[0]) * (1 + 1e-14)


def test_no_norm_depends_on_other_records(limit_bytes):
    """A bound that grew with the batch would move every other record's share."""
    for seed in range(40):
        factors = adversarial(torch.Generator().manual_seed(seed))
        _, norms = total_of(factors, 1.0, limit_bytes)
        _, fewer = total_of([f[:9] for f in factors], 1.0, limit_bytes)
        assert torch.equal(norms[:9], fewer)


@pytest.mark.parametrize("tile_rows", [1, 5, 12])
@pytest.mark.parametrize("wrong", [1.0 + 1e-6, 3.0, 1e6])
def test_what_is_longer_than_its_norm_is_scaled_down(tile_rows, wrong, monkeypatch):
    """Whatever forming gives, no more than the squared norm is added."""
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", tile_rows * COLS)
    left, right, looked, ids = adversarial(torch.Generator().manual_seed(1))
    uses = [Outer(left[:1], right[:1]), Lookup(ids[:1], looked[:1], ROWS)]
    squared = tiles.tile_norms(uses)
    longer = [
        Outer(wrong * left[:1], right[:1]),
        Lookup(ids[:1], wrong * looked[:1], ROWS),
    ]
    out = torch.zeros(ROWS * COLS, dtype=torch.float64)
    tiles.add_tiles(out, longer, torch.ones(1, dtype=torch.float64), squared)
    assert float(out.norm()) <= float(squared.sqrt()) * (1 + 1e-15)
    assert float(out.norm()) > (0.999 if tile_rows == 12 else 0.3) * float(
        squared.sqrt()
    )


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


def test_every_way_matches_the_naive_reference(limit_bytes):
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
    naive = torch.stack(rows)
    clip_norm = float(naive.norm(dim=1).median())
    clipper = PerRecordClipper(model, named, limit_bytes=limit_bytes)
    found, norms = clipper.clipped_sum(lambda: losses(ids), 16, clip_norm)
    assert relative_error(found, naive_sum(naive, clip_norm)) < 1e-5
    assert relative_error(norms, naive.norm(dim=1)) < 1e-5
