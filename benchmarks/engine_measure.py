"""One measurement of the engine benchmark, in a process of its own.

python benchmarks/engine_measure.py time|memory CASE WAY [PAIRS]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import opacus.optimizers
import peft  # noqa: F401 - imports count before the memory does
import torch
import transformers  # noqa: F401
from engine_cases import Case, build
from opacus.grad_sample.utils import wrap_model
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn

from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.clipping import PerRecordClipper
from pft_ray.training.clipping.clipper import DEFAULT_LIMIT_BYTES
from pft_ray.training.optimizers import OptimizerSpec, PrivateOptimizer
from pft_ray.training.step import StepKeys, privatise
from pft_ray.training.types import ClippedSum, PrivateGrad

if TYPE_CHECKING:
    from collections.abc import Callable

RATE, CLIP, SIGMA = 1e-4, 1.0, 1.0
KEY = bytes(range(32))
OWN_LIMITS = {"own": DEFAULT_LIMIT_BYTES, "own-held": 0}


def record_losses(case: Case, model: nn.Module, number: int) -> torch.Tensor:
    """Returns (B,) losses on the batch of that number."""
    generator = torch.Generator().manual_seed(number)
    shape = (case.batch, case.tokens)
    ids = torch.randint(0, case.vocabulary, shape, generator=generator)
    mask = torch.ones_like(ids)
    positions = torch.arange(case.tokens).expand(shape)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    if case.family == "bert":
        return nn.functional.cross_entropy(logits, ids[:, 0] % 2, reduction="none")
    nll = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return nll.view(case.batch, -1).mean(1)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def plain(case: Case) -> Callable[[int], None]:
    model = build(case)
    parameters = [p for _, p in trained(model)]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

    def step(number: int) -> None:
        record_losses(case, model, number).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def own(case: Case, limit_bytes: int) -> Callable[[int], None]:
    model = build(case)
    named = trained(model)
    clipper = PerRecordClipper(
        model,
        named,
        limit_bytes=limit_bytes,
        most_records=case.batch,
        mode=case.clipping,
    )
    mechanism = SampledGaussian(0.1, SIGMA, 1)
    optimizer = PrivateOptimizer(named, OptimizerSpec("adamw", RATE, 1000))

    def step(number: int) -> None:
        vector, _ = clipper.clipped_sum(
            lambda: record_losses(case, model, number), case.batch, CLIP
        )
        clipped = ClippedSum(vector, CLIP)
        del vector
        noise_key = derive_key(KEY, "noise", number)
        keys = StepKeys(1, number, KEY, ((0, 1),), (noise_key,))
        share = privatise(clipped, mechanism, keys, 0)
        del clipped
        optimizer.apply(PrivateGrad(share.vector / case.batch))

    return step


def opacus_step(case: Case, mode: str) -> Callable[[int], None]:
    model = build(case)
    model.train()
    ghost = mode == "ghost"
    extra = {"max_grad_norm": CLIP, "use_ghost_clipping": True} if ghost else {}
    wrapped = wrap_model(
        model, grad_sample_mode=mode, batch_first=True, loss_reduction="sum", **extra
    )
    kind = (
        opacus.optimizers.DPOptimizerFastGradientClipping
        if ghost
        else opacus.optimizers.DPOptimizer
    )
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = kind(
        torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=case.batch,
        loss_reduction="mean",
    )

    def step(number: int) -> None:
        losses = record_losses(case, wrapped, number)
        if ghost:
            DPTensorFastGradientClipping(
                wrapped, optimizer, losses, loss_reduction="sum"
            ).backward()
        else:
            losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def step_of(case: Case, way: str) -> Callable[[int], None]:
    if way == "plain":
        return plain(case)
    if way in OWN_LIMITS:
        return own(case, OWN_LIMITS[way])
    return opacus_step(case, way)


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(field)).split()[1])


def peak_mib(case: Case, way: str) -> float:
    """Returns the growth of the peak resident memory over three steps."""
    before = resident_bytes("VmRSS")
    step = step_of(case, way)
    for number in range(3):
        step(number)
    return (resident_bytes("VmHWM") - before) / 2**20


def pairs_s(case: Case, way: str, pairs: int) -> list[tuple[float, float]]:
    """Times private and plain steps on the same batches, in changing order."""
    steps = [step_of(case, way), plain(case)]
    for step in steps:
        step(0)
    times = []
    for number in range(1, pairs + 1):
        found = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            steps[index](number)
            found[index] = time.perf_counter() - start
        times.append((found[0], found[1]))
    return times


def main() -> None:
    torch.set_num_threads(1)
    what, packed, way = sys.argv[1:4]
    case = Case(**json.loads(packed))
    if what == "memory":
        print(json.dumps({"mib": peak_mib(case, way)}))
        return
    size = sum(p.numel() for _, p in trained(build(case)))
    seconds = pairs_s(case, way, int(sys.argv[4]))
    print(json.dumps({"seconds": seconds, "num_parameters": size}))


if __name__ == "__main__":
    main()
