"""Secure noise and the keyed sampler, beside torch's generator."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from cards import Card, Figure, options

from pft_ray.crypto import new_key
from pft_ray.mechanisms import SampledGaussian, noise_share

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 11
MILLION = 1_000_000


def rounds_of(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median milliseconds of each call, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    size = MILLION // 100 if given.quick else MILLION
    card = Card(
        "sampler",
        "Secure noise and sampling",
        "sampler",
        f"One thread, {size:,} normals or units a call, all calls taking turns; "
        f"medians of {ROUNDS}. Noise: one share from the AES-256-CTR stream, fp64, by "
        "Box and Muller's transform. Sampling: AES-256 of every unit's digest "
        "under the step's key, rate 0.1.",
        quick=given.quick,
    )
    mechanism = SampledGaussian(0.1, 1.0, 1)
    raw = np.random.default_rng(1).integers(0, 256, (size, 16), dtype=np.uint8)
    found = rounds_of(
        {
            "share": lambda: noise_share(new_key(), size, 1.0),
            "torch64": lambda: torch.randn(size, dtype=torch.float64),
            "torch32": lambda: torch.randn(size),
            "sample": lambda: mechanism.sample(new_key(), raw),
        },
        ROUNDS,
    )
    scale = MILLION / size
    card.figures = [
        Figure("secure normals, a million", scale * found["share"], "ms"),
        Figure("torch.randn fp64, a million", scale * found["torch64"], "ms"),
        Figure("torch.randn fp32, a million", scale * found["torch32"], "ms"),
        Figure("secure over torch.randn fp64", found["share"] / found["torch64"], "x"),
        Figure("secure over torch.randn fp32", found["share"] / found["torch32"], "x"),
        Figure("keyed sampler, a million units", scale * found["sample"], "ms"),
    ]
    card.details = {"milliseconds": found, "size": size}
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
