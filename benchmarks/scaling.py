"""Two workers against one: the quickstart's LoRA step, the same global batch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pieces
import torch
import torch.distributed as dist
from cards import Card, Figure, options

from pft_ray.cluster.inputs import shard_of
from pft_ray.cluster.worker import GlooCollective
from pft_ray.training.step import Alone

if TYPE_CHECKING:
    from pft_ray.training.step import PrivateStep

WORLD = 2
WARM_UP = 2
ROUNDS = 15
TOLERANCE = 1e-3


def checksum(state: dict[str, torch.Tensor]) -> str:
    """Returns SHA-256 over all tensors of a state."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def timed(step: PrivateStep, number: int, rank: int, world: int) -> float:
    """Makes one step and returns its seconds."""
    keys = pieces.public_keys(step.plan.num_shares, number, rank, world)
    start = time.perf_counter()
    step.run(keys)
    return time.perf_counter() - start


def run_rank(rank: int, folder: Path, *, quick: bool) -> None:
    """One rank: rank 0 also makes every step alone, in turns with both."""
    torch.set_num_threads(1)
    built = pieces.quickstart()
    train, _ = pieces.tables(built, 256 if quick else 0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=20),
    )
    shard = train.take(shard_of(train.digests, rank, WORLD))
    both = pieces.step_of(built, shard, GlooCollective())
    alone = pieces.step_of(built, train, Alone()) if rank == 0 else None
    first = built.plan.phases[0].num_steps
    times: dict[str, list[float]] = {"one": [], "two": []}
    # One batch touches every block of the frozen prefix's cache: a warm-up fills it.
    for number in range(first, first + WARM_UP + (3 if quick else ROUNDS)):
        for name in ("one", "two") if number % 2 else ("two", "one"):
            dist.barrier()
            if name == "two":
                times[name].append(timed(both, number, rank, WORLD))
            elif alone is not None:
                times[name].append(timed(alone, number, 0, 1))
    result: dict[str, Any] = {
        "seconds": {name: values[WARM_UP:] for name, values in times.items()},
        "checksum": checksum(both.work.state()),
        "records": [
            len(both.mechanism.sample(key.sample_key, shard.digests))
            for key in (
                pieces.public_keys(1, first + WARM_UP + i, 0, 1)
                for i in range(len(times["two"]) - WARM_UP)
            )
        ],
    }
    if alone is not None:
        result |= compare(alone.work.state(), both.work.state())
    (folder / f"rank-{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def compare(
    one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Returns how far the parameters of the two world sizes are apart."""
    names = [name for name in one if name.startswith("parameter/")]
    differences = [float((one[n] - two[n]).abs().max()) for n in names]
    sizes = [float(one[n].abs().max()) for n in names]
    return {"largest_difference": max(differences), "largest_parameter": max(sizes)}


def run_ranks(*, quick: bool) -> list[dict[str, Any]]:
    """Runs all ranks as plain processes and returns what they found."""
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        command = [sys.executable, __file__, "--folder", folder]
        command += ["--quick"] if quick else []
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(WORLD)
        ]
        codes = [process.wait() for process in ranks]
        if any(codes):
            sys.exit(f"the ranks ended with {codes}")
        files = [Path(folder) / f"rank-{rank}.json" for rank in range(WORLD)]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def main() -> None:
    given = options(rank=-1, folder="")
    if given.rank >= 0:
        run_rank(given.rank, Path(given.folder), quick=given.quick)
        return
    card = Card(
        "scaling",
        "Two workers against one on the quickstart's LoRA step",
        "scaling",
        "Two plain processes over gloo, one torch thread each, run the real private "
        "step (sampler, per-record clipping, noise shares, header check, all-reduce, "
        "optimiser) on the quickstart's LoRA phase; one process with one thread makes "
        "the same step, from the same keys and two fixed noise shares, in turns with "
        "them. The cache of the frozen layers is full before timing. A time is rank "
        "0's, from a barrier to the end of the optimiser.",
        quick=given.quick,
    )
    ranks = run_ranks(quick=given.quick)
    one = np.array(ranks[0]["seconds"]["one"])
    two = np.array(ranks[0]["seconds"]["two"])
    records = np.array([rank["records"] for rank in ranks])
    balance = records.sum(0) / records.max(0)
    relative = ranks[0]["largest_difference"] / ranks[0]["largest_parameter"]
    same = ranks[0]["checksum"] == ranks[1]["checksum"]
    card.figures = [
        Figure("speed-up, median of pairs", float(np.median(one / two)), "x", 1.8),
        Figure("one worker, a step", float(np.median(one)), "s"),
        Figure("two workers, a step", float(np.median(two)), "s"),
        Figure("ceiling from the split of the batches", float(np.median(balance)), "x"),
        Figure("ranks with equal parameter checksums", float(same) + 1, "of 2", 2),
        Figure(
            "parameters, one worker against two: largest difference over largest",
            relative,
            at_most=TOLERANCE,
        ),
    ]
    card.notes = [
        f"{len(one)} steps each, batches of {int(records.sum(0).min())} to "
        f"{int(records.sum(0).max())} records.",
        "Each unit belongs to the rank that its digest names, so batches do not split "
        "into equal halves; the ceiling is the batch over the larger part.",
    ]
    card.details = {"ranks": ranks}
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
