"""A thousand workers at one coordinator, and charges on a PostgreSQL ledger."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import machine
import numpy as np
import psutil
from cards import Card, Figure, options
from ledger import GRANT, Charger, each_s, fill_ledger, make_plan, syncs_per_s

from pft_ray.crypto import new_token
from pft_ray.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = 1000


class Sizes(NamedTuple):
    """Simulated seconds at one step a second; charges on PostgreSQL."""

    workers: int
    seconds: int
    charges: int
    grants: int


FULL = Sizes(workers=WORKERS, seconds=60, charges=2000, grants=500)
QUICK = Sizes(workers=20, seconds=10, charges=20, grants=10)


def requests(sizes: Sizes, grant: int) -> Iterator[tuple[float, int, int]]:
    """Yields (second, rank, first step): each worker asks once in ``grant`` seconds.

    All want the same steps, as ranks of one run do; they ask one after another,
    evenly over the seconds that the grant lasts.
    """
    for start in range(0, sizes.seconds, grant):
        for rank in range(sizes.workers):
            yield start + grant * rank / sizes.workers, rank, start


def measure_workers(card: Card, folder: Path, sizes: Sizes, grant: int) -> None:
    """Workers of one run ask the coordinator's actor; its process's CPU is read."""
    import ray

    from pft_ray.cluster.actors import call, start_coordinator, stop_coordinator
    from pft_ray.cluster.coordinator import CoordinatorConfig

    folder.mkdir()
    with Ledger.open(
        folder / "ledger.db", keys_dir=folder / "keys", create=True
    ) as made:
        fill_ledger(made, make_plan(100_000, num_shares=sizes.workers))
    config = CoordinatorConfig(
        str(folder / "ledger.db"), str(folder / "keys"), "run", str(folder / "anchor")
    )
    tokens = [new_token() for _ in range(sizes.workers)]
    try:
        actor = start_coordinator(config)
        attempt = call(actor, "open_attempt", tokens, 0, "start")
        process = psutil.Process(call(actor, "status")["pid"])
        pending, late = [], 0.0
        used = sum(process.cpu_times()[:2])
        begun = time.perf_counter()
        for second, rank, start in requests(sizes, grant):
            pause = second - (time.perf_counter() - begun)
            if pause > 0:
                time.sleep(pause)
            late = max(late, -pause)
            pending.append(
                actor.request.remote(attempt, rank, tokens[rank], start, start + grant)
            )
            if len(pending) >= 50:
                _check(ray.get(pending, timeout=60), grant)
                pending = []
        _check(ray.get(pending, timeout=60), grant)
        elapsed = time.perf_counter() - begun
        used = sum(process.cpu_times()[:2]) - used
    finally:
        stop_coordinator("run")
    asked = f"{sizes.workers:,} workers, 1 step/s, grants of {grant}"
    goal = 10.0 if grant >= 10 else None
    steps = -(-sizes.seconds // grant) * grant
    card.figures += [
        Figure(f"{asked}: coordinator's part of a core", 100 * used / elapsed, "%",
               at_most=goal),
        Figure(f"{asked}: seconds for {steps} steps", elapsed, "s",
               at_most=1.05 * steps),
        Figure(f"{asked}: latest request behind its time", late, "s"),
    ]  # fmt: skip


def _check(replies: list[object], grant: int) -> None:
    assert all(len(reply.steps) == grant for reply in replies)  # type: ignore[attr-defined]


def measure_postgres(card: Card, folder: Path, sizes: Sizes) -> None:
    """Single charges and grants on a server of this machine, over a unix socket."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.postgres_server import PostgresServer

    server = PostgresServer()
    try:
        url = server.new_schema()
        with Ledger.open(url, keys_dir=folder / "keys", create=True) as ledger:
            fill_ledger(ledger, make_plan(10_000_000))
            charge = Charger(ledger)
            each_s(charge, 50)
            single = each_s(charge, sizes.charges)
            grants = each_s(lambda: charge(GRANT), sizes.grants)
        disk = syncs_per_s(folder, sizes.grants)
    finally:
        server.close()
    slowest = 1000 * float(np.quantile(single, 0.99))
    card.figures += [
        Figure("PostgreSQL: single charges", len(single) / float(single.sum()), "/s"),
        Figure("PostgreSQL: 99 of 100 charges within", slowest, "ms"),
        Figure(
            f"PostgreSQL: steps in grants of {GRANT}",
            GRANT * len(grants) / float(grants.sum()),
            "/s",
        ),
        Figure("this disk: 4 KiB append and fdatasync", disk, "/s"),
    ]


def main() -> None:
    given = options()
    sizes = QUICK if given.quick else FULL
    card = Card(
        "ledger-load",
        "The ledger under load: many workers, and PostgreSQL",
        "ledger_load",
        "Workers are simulated: one process asks in the name of each, at the moments "
        "when it would ask if every step took a second, and waits for all replies. "
        "The coordinator's CPU time is its whole process's, Ray's threads included. "
        "PostgreSQL runs here, with fsync and synchronous_commit on, over a unix "
        "socket; a charge is one transaction.",
        quick=given.quick,
    )
    from pft_ray.cluster.local import ray_cluster

    with tempfile.TemporaryDirectory(prefix="pft-bench-") as place:
        folder = Path(place)
        card.notes.append(f"Ledger and server lie on {machine.file_system(folder)}.")
        os.environ |= {"HOME": place, "PFT_HOME": str(folder / "home")}
        measure_postgres(card, folder, sizes)
        with ray_cluster(None, num_cpus=1):
            for grant in (10, GRANT) if not given.quick else (5,):
                measure_workers(card, folder / f"grants-{grant}", sizes, grant)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
