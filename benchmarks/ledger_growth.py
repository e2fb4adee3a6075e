"""Whether a charge and the epsilon of now cost the same on a million entries."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import machine
import numpy as np
from cards import Card, Figure, options
from ledger import GRANT, Charger, each_s, make_plan, new_ledger

from pft_ray.ledger import Envelope, Ledger, Position
from pft_ray.ledger.entries import make_entry
from pft_ray.ledger.state import advance, check

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = "d/train"


class Sizes(NamedTuple):
    """How long the ledger gets, over how many runs, and how many pairs are timed."""

    entries: int
    runs: int
    pairs: int


FULL = Sizes(entries=1_000_000, runs=1000, pairs=300)
QUICK = Sizes(entries=2000, runs=5, pairs=20)


def grow(ledger: Ledger, sizes: Sizes) -> None:
    """Appends whole runs, each checked by the rules, in few large transactions.

    One transaction a thousand entries is the only difference from what runs do: the
    rows are the same.
    """
    chain = ledger._chain
    with chain.reading() as state:
        steps = (sizes.entries - state.sequence) // sizes.runs - 4
        plan = make_plan(steps)
    envelope = Envelope.priced(BLOCK, "training", 0.05, plan.delta, plan.event)
    template = {
        "name": "grown",
        "plan": plan.to_dict(),
        "plan_digest": plan.digest,
        "envelopes": [envelope.to_dict()],
    }

    def append(kind: str, **body: object) -> None:
        check(state, kind, body)
        entry = make_entry(state.position, kind, body)
        chain.store.insert(entry)
        advance(state, entry)

    for number in range(sizes.runs):
        run = {"run_id": f"run-{number}"}
        with chain.reading() as state, chain.store.transaction():
            append("reserve", **run, **template, blind=f"{number:032x}")
            append("epoch", **run, epoch=1)
            append("attempt", **run, epoch=1, attempt=1, start=0, reason="start")
            for step in range(steps):
                append(
                    "grant",
                    **run,
                    epoch=1,
                    attempt=1,
                    start=step,
                    stop=step + 1,
                    charged=step + 1,
                    nonce=f"{step:032x}",
                )
            append("end", **run, epoch=1, status="completed", num_steps_released=steps)


def epsilon_now(ledger: Ledger) -> float:
    """What the block has used, and what a run was charged: as new as the store."""
    ledger.run_status("run")
    return float(ledger.block_status(BLOCK).used_epsilon)


def medians(
    pairs: int, one: Callable[[], object], other: Callable[[], object]
) -> tuple[float, float]:
    """Returns the median seconds of two calls that take turns."""
    for _ in range(5):
        one(), other()
    times = np.array([(each_s(one, 1)[0], each_s(other, 1)[0]) for _ in range(pairs)])
    first, second = np.median(times, axis=0)
    return float(first), float(second)


def replayed(folder: Path) -> tuple[float, Position, float]:
    """Opens the ledger anew: seconds, position and epsilon used."""
    start = time.perf_counter()
    with Ledger.open(folder / "ledger.db", keys_dir=folder / "keys") as ledger:
        seconds = time.perf_counter() - start
        return seconds, ledger.position(), epsilon_now(ledger)


def measure(card: Card, folder: Path, sizes: Sizes) -> None:
    """Grows a ledger, then it and a new one take turns."""
    for name in ("long", "short"):
        (folder / name).mkdir()
    with (
        new_ledger(folder / "long") as long,
        new_ledger(folder / "short") as short,
    ):
        grow(long, sizes)
        entries = long.position().sequence
        charge_long, charge_short = Charger(long), Charger(short)
        each_s(charge_short, 3)
        short_entries = short.position().sequence
        charge = medians(sizes.pairs, charge_long, charge_short)
        asked = medians(
            sizes.pairs, lambda: epsilon_now(long), lambda: epsilon_now(short)
        )
        running = (long.position(), epsilon_now(long))
    taken = [replayed(folder / "long") for _ in range(3)]
    same = all((position, used) == running for _, position, used in taken)
    seconds = float(np.median([each for each, *_ in taken]))
    size = (folder / "long" / "ledger.db").stat().st_size
    card.details |= {"charge_s": charge, "asked_s": asked, "replay_s": taken[0][0]}
    against = f"on {entries:,} entries of {sizes.runs + 1:,} runs over one on "
    against += f"{short_entries}"
    card.figures += [
        Figure(f"a charge {against}", charge[0] / charge[1], "x", at_most=1.5),
        Figure(f"epsilon now {against}", asked[0] / asked[1], "x", at_most=1.5),
        Figure("a charge there", 1000 * charge[0], "ms"),
        Figure("epsilon now there", 1000 * asked[0], "ms"),
        Figure(f"full replay of {entries:,} entries", seconds, "s", at_most=10),
        Figure("the running state equals each of 3 replays", float(same), at_least=1),
        Figure("size of the ledger", size / 2**20, "MiB"),
    ]


def main() -> None:
    given = options()
    sizes = QUICK if given.quick else FULL
    card = Card(
        "ledger-growth",
        "The ledger: growth with its length",
        "ledger_growth",
        "SQLite with a write-ahead log and synchronous=FULL. The long ledger holds "
        "whole runs of single-step charges, each row checked by the rules when it was "
        f"made and when it is replayed; grants there hold at most {GRANT} steps. "
        "Medians of calls that take turns on the long and on a new ledger. Epsilon "
        "now is the status of a run and of its block, read as new as the store is.",
        quick=given.quick,
    )
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        card.notes.append(f"The ledger lies on {machine.file_system(Path(folder))}.")
        os.environ |= {"HOME": folder, "PFT_HOME": str(Path(folder) / "home")}
        measure(card, Path(folder), sizes)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
