"""Whatever a module does with its parameters: right, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pft_ray.errors import ModelError
from pft_ray.training.clipping import PerRecordClipper, UnsupportedUseError
from tests.training.tiny import naive_sum, relative_error

B, T, H = 3, 5, 4


class Use(nn.Module):
    """A linear layer, then what a function does with a parameter of a given shape."""

    def __init__(self, shape, act):
        super().__init__()
        self.inner = nn.Linear(H, H)
        self.w = nn.Parameter(torch.randn(shape))
        self.act = act

    def forward(self, x):
        return self.act(self.inner(x), self.w)


def flat(x, act):
    return act(x.reshape(-1, x.size(-1))).view(*x.shape[:-1], -1)


def in_place(x, w):
    x += w
    return x


def rms(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + w.float())


KNOWN = {
    "gain": ((H,), lambda x, w: x * w),
    "gain first": ((H,), lambda x, w: w * x),
    "gain of one": ((1,), lambda x, w: w * x),
    "gain with leading ones": ((1, 1, H), lambda x, w: x * w),
    "gain a position": ((T, H), lambda x, w: x * w),
    "gain a position, one column": ((T, 1), lambda x, w: x * w),
    "one plus a gain": ((H,), lambda x, w: x * (1 + w)),
    "gemma's norm": ((H,), rms),
    "gain through a function": ((H,), lambda x, w: x * torch.exp(w)),
    "gain turned around": ((H,), lambda x, w: x * w.flip(0)),
    "half of a parameter": ((2 * H,), lambda x, w: x * w[:H] + w[H:]),
    "shift": ((H,), lambda x, w: x + w),
    "shift in place": ((H,), in_place),
    "positions of a table": ((9, H), lambda x, w: x + w[:T]),
    "positions looked up once": (
        (9, H),
        lambda x, w: x + functional.embedding(torch.arange(T), w),
    ),
    "positions looked up in one row": (
        (9, H),
        lambda x, w: x + functional.embedding(torch.arange(T)[None], w),
    ),
    "product with a transposed weight": ((3, H), lambda x, w: x @ w.T),
    "product": ((H, 3), torch.matmul),
    "linear": ((3, H), functional.linear),
    "linear of a scaled weight": ((3, H), lambda x, w: functional.linear(x, 0.5 * w)),
    "linear of two uses": ((H, H), lambda x, w: functional.linear(x, w @ w.t())),
    "transposed twice": ((3, H), lambda x, w: functional.linear(x, w.t().t())),
    "rows of a fused weight": (
        (3 * H, H),
        lambda x, w: functional.linear(x, w[:H]) * functional.linear(x, w[H : 2 * H]),
    ),
    "product of flattened positions": (
        (H, 3),
        lambda x, w: flat(x, lambda y: torch.mm(y, w)),
    ),
    "addmm of flattened positions": (
        (H + 1, 3),
        lambda x, w: flat(x, lambda y: torch.addmm(w[H], y, w[:H])),
    ),
    "flattened through activations": (
        (H, H),
        lambda x, w: flat(
            x,
            lambda y: functional.linear(
                functional.relu(functional.linear(functional.layer_norm(y, (H,)), w)), w
            ),
        ),
    ),
    "gain of flattened positions": ((H,), lambda x, w: flat(x, lambda y: y * w)),
}


def naive_rows(model, losses, x):
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(losses(x[i : i + 1])[0], list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0], ids=["formed", "held"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_use_equals_plain_autograd(name, limit_bytes):
    torch.manual_seed(1)
    model = Use(*KNOWN[name]).double()
    x = torch.randn(B, T, H, dtype=torch.float64)

    def losses(rows):
        return model(rows).pow(2).tanh().flatten(1).sum(1)

    gradients = naive_rows(model, losses, x)
    clip_norm = float(gradients.norm(dim=1).median())
    clipper = PerRecordClipper(
        model, list(model.named_parameters()), limit_bytes=limit_bytes
    )
    found, norms = clipper.clipped_sum(lambda: losses(x), B, clip_norm)
    tolerance = 5e-8 if name == "gemma's norm" else 1e-10
    assert relative_error(found, naive_sum(gradients, clip_norm)) < tolerance
    assert relative_error(norms, gradients.norm(dim=1)) < tolerance
    assert all(p.grad is None for p in model.parameters())


UNKNOWN = {
    "conv1d": ((H, T, 1), functional.conv1d),
    "batched product": ((B, H, H), torch.bmm),
    "where": ((H,), lambda x, w: torch.where(x > 0, x, w)),
    "rows picked by data": ((9, H), lambda x, w: x + w[(x[..., 0] > 0).long()]),
    "concatenated": ((1, 1, H), lambda x, w: torch.cat([x, w.expand(B, 1, H)], 1)),
    "shuffled positions": (
        (H, H),
        lambda x, w: functional.linear(x.transpose(0, 1).reshape(-1, H), w),
    ),
    "positions first": ((H, H), lambda x, w: functional.linear(x.transpose(0, 1), w)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_use_is_refused_by_name(name):
    torch.manual_seed(1)
    model = Use(*UNKNOWN[name])
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    x = torch.randn(B, T, H)
    with pytest.raises(UnsupportedUseError, match="'w'") as caught:
        clipper.clipped_sum(lambda: model(x).sum().expand(B), B, 1.0)
    assert caught.value.fix
    assert all(p.grad is None for p in model.parameters())


def test_weight_normalisation_is_carried_back():
    """The weight is g * v / |v|, made anew in each forward pass."""
    torch.manual_seed(2)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(H, 3))).double()
    x = torch.randn(B, T, H, dtype=torch.float64)

    def losses(rows):
        return model(rows).tanh().sum((1, 2))

    gradients = naive_rows(model, losses, x)
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    found, _ = clipper.clipped_sum(lambda: losses(x), B, 0.7)
    assert relative_error(found, naive_sum(gradients, 0.7)) < 1e-10


class Subclass(nn.Linear):
    """Computes something else than its parent."""

    def forward(self, x):
        return super().forward(x).tanh() * self.bias


def test_a_subclass_is_taken_for_what_it_does():
    torch.manual_seed(3)
    model = nn.Sequential(Subclass(H, H)).double()
    x = torch.randn(B, T, H, dtype=torch.float64)

    def losses(rows):
        return model(rows).sum((1, 2))

    gradients = naive_rows(model, losses, x)
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    found, _ = clipper.clipped_sum(lambda: losses(x), B, 0.7)
    assert relative_error(found, naive_sum(gradients, 0.7)) < 1e-10


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_records_each_use_once(reentrant):
    torch.manual_seed(4)
    model = nn.ModuleDict({"a": nn.Linear(H, H), "b": nn.LayerNorm(H)}).double()
    x = torch.randn(B, T, H, dtype=torch.float64, requires_grad=True)

    def losses(rows, *, checkpointed=False):
        def block(y):
            return model["b"](model["a"](y).tanh())

        for _ in range(2):
            if checkpointed:
                rows = torch.utils.checkpoint.checkpoint(
                    block, rows, use_reentrant=reentrant
                )
            else:
                rows = block(rows)
        return rows.pow(3).sum((1, 2))

    gradients = naive_rows(model, losses, x)
    clipper = PerRecordClipper(model, list(model.named_parameters()))
    found, _ = clipper.clipped_sum(lambda: losses(x, checkpointed=True), B, 0.5)
    assert relative_error(found, naive_sum(gradients, 0.5)) < 1e-10


def test_autocast_is_followed():
    """Products run in bf16; what is clipped is near fp32 and never above C."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16))
    x = torch.randn(B, T, 16)

    def losses(rows):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(rows)
        return out.float().pow(2).sum((1, 2))

    clipper = PerRecordClipper(model, list(model.named_parameters()))
    gradients = naive_rows(model, losses, x)
    found, norms = clipper.clipped_sum(lambda: losses(x), B, 1.0)
    assert relative_error(found, naive_sum(gradients, 1.0)) < 2e-2
    assert relative_error(norms, gradients.norm(dim=1)) < 2e-2
    for i in range(B):
        one, _ = clipper.clipped_sum(lambda i=i: losses(x[i : i + 1]), 1, 1.0)
        assert float(one.norm()) <= 1.0


def test_a_table_that_rewrites_itself_is_refused():
    module = nn.Sequential(nn.Embedding(4, 3, max_norm=1.0))
    with pytest.raises(ModelError, match="'0' has max_norm"):
        PerRecordClipper(module, list(module.named_parameters()))


def test_counts_over_the_batch_are_refused():
    module = nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True))
    clipper = PerRecordClipper(module, list(module.named_parameters()))
    ids = torch.tensor([[1, 1], [1, 2]])
    with pytest.raises(UnsupportedUseError, match=r"'0\.weight' is used by embedding"):
        clipper.clipped_sum(lambda: module(ids).sum((1, 2)), 2, 1.0)
