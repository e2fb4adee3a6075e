"""What clipping costs: the quickstart's private LoRA step against a plain one."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pieces
import torch
from cards import Card, Figure, options

from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.prefix import PrefixCache
from pft_ray.training.step import finish, privatise

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pft_ray.config import BuiltJob
    from pft_ray.data.tokens import TokenTable

BATCH = 512
ROUNDS = 21


class PlainStep:
    """The same step without privacy: ordinary autograd and AdamW, mean loss."""

    def __init__(self, built: BuiltJob, table: TokenTable) -> None:
        self._model = pieces.fresh_model(built)
        section = built.job.training.phases[pieces.LORA_PHASE]
        named = self._model.set_trainable(section.trainable)
        self._micro_batch = built.job.training.max_micro_batch
        self._cache = PrefixCache(self._model, table, chunk_rows=self._micro_batch)
        self._cache.start_phase(section.trainable)
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in named],
            lr=section.learning_rate,
            weight_decay=0.0,
        )

    def __call__(self, rows: NDArray[np.int64], _number: int) -> None:
        for start in range(0, len(rows), self._micro_batch):
            batch = self._cache.batch(rows[start : start + self._micro_batch])
            (self._model.losses(batch).sum() / len(rows)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class DPStep:
    """The private step of one rank that is alone, and how long its parts take."""

    def __init__(self, built: BuiltJob, table: TokenTable) -> None:
        self._plan = built.plan
        self._work = pieces.work_of(built, table, pieces.LORA_PHASE)
        self._mechanism = SampledGaussian.from_plan(built.plan)
        self._first = built.plan.phases[0].num_steps
        self.noise_s: list[float] = []

    def __call__(self, rows: NDArray[np.int64], number: int) -> None:
        keys = pieces.public_keys(self._plan.num_shares, number, 0, 1)
        phase = self._plan.phases[pieces.LORA_PHASE]
        clipped = self._work.clipped_sum(rows, phase.clip_norm)
        start = time.perf_counter()
        share = privatise(clipped, self._mechanism, keys, pieces.LORA_PHASE)
        self.noise_s.append(time.perf_counter() - start)
        self._work.apply(finish(share.vector, self._plan))


def seconds(step: Callable[[], None]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(
    steps: list[Callable[[NDArray[np.int64], int], None]], num_records: int, rounds: int
) -> NDArray[np.float64]:
    """Times the steps on the same batches, in changing order; shape (rounds, 2)."""
    generator = np.random.default_rng(1)
    times = np.zeros((rounds, len(steps)))
    for number in range(rounds):
        rows = generator.permutation(num_records)[: num_records // 2]
        rows.sort()
        order = range(len(steps)) if number % 2 else reversed(range(len(steps)))
        for index in order:
            times[number, index] = seconds(partial(steps[index], rows, number))
    return times


def main() -> None:
    given = options()
    num_records = 128 if given.quick else 2 * BATCH
    card = Card(
        "clipping",
        "Private against plain: the quickstart's LoRA step",
        "clipping",
        f"One process, one torch thread, {num_records // 2} records of 64 tokens in "
        "micro-batches of 64, rank-4 LoRA on query and value of the last of six "
        "layers (H 384) and the head; the frozen layers are cached. Private: "
        "per-record clipping in one backward pass, secure noise, optimiser. Plain: "
        "ordinary autograd on the mean loss, AdamW. Both run on the same batches, in "
        "changing order; the ratio is the median of the pairs.",
        quick=given.quick,
    )
    built = pieces.quickstart()
    train, _ = pieces.tables(built, num_records)
    private, plain = DPStep(built, train), PlainStep(built, train)
    everything = np.arange(num_records)
    plain(everything, 0)
    private(everything, 0)
    torch.set_num_threads(1)
    times = measure([private, plain], num_records, 3 if given.quick else ROUNDS)
    ratios = times[:, 0] / times[:, 1]
    low, high = np.quantile(ratios, [0.25, 0.75])
    card.figures = [
        Figure("private step over plain step", float(np.median(ratios)), "x"),
        Figure("private step", float(np.median(times[:, 0])), "s"),
        Figure("plain step", float(np.median(times[:, 1])), "s"),
        Figure("noise of a step", 1000 * float(np.median(private.noise_s)), "ms"),
    ]
    card.notes = [
        f"{len(ratios)} pairs; half of the ratios lie between {low:.3f} and "
        f"{high:.3f}.",
        "A one-layer LoRA is not where clipping engines differ.",
    ]
    card.details = {"seconds_private_plain": times.tolist()}
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
