"""What a durable charge costs, directly and through the coordinator's actor."""

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

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.crypto import new_token
from pft_ray.ledger import BlockSpec, Envelope, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

GRANT = 50
PAGE = bytes(4096)


class Sizes(NamedTuple):
    """How often each thing is done."""

    charges: int
    grants: int
    calls: int


FULL = Sizes(charges=3000, grants=1000, calls=3000)
QUICK = Sizes(charges=50, grants=20, calls=50)


def make_plan(steps: int, num_shares: int = 1) -> Plan:
    """A plan with so much noise that its price does not matter here."""
    return Plan(
        unit="record",
        size=10_000,
        sample_rate=0.001,
        noise_multiplier=50.0,
        phases=(Phase("all", steps, "head", 1.0),),
        fault_reserve=0,
        delta=1e-5,
        grant_size=GRANT,
        num_shares=num_shares,
    )


def new_ledger(folder: Path, steps: int = 10_000_000) -> Ledger:
    """Makes a ledger with one data set, one block and one reserved run."""
    ledger = Ledger.open(folder / "ledger.db", keys_dir=folder / "keys", create=True)
    fill_ledger(ledger, make_plan(steps))
    return ledger


def fill_ledger(ledger: Ledger, plan: Plan) -> None:
    """Registers a data set, creates a block and reserves one run on it."""
    rows = np.arange(32, dtype=np.uint8).reshape(2, 16)
    ledger.register_dataset("d", public=True, namespaces={"record": rows}, facts={})
    split = {"kind": "hash-split", "salt": "s", "validation_fraction": 0.2}
    ledger.create_block(
        BlockSpec(
            name="d/train",
            dataset="d",
            predicate={**split, "role": "train"},
            unit="record",
            epsilon=1000.0,
            delta=0.5,
        )
    )
    envelope = Envelope.priced("d/train", "training", 900.0, plan.delta, plan.event)
    ledger.reserve("run", plan, [envelope])


class Charger:
    """Charges the next steps of an open attempt, each in a commit of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._epoch = ledger.take_epoch("run")
        self._attempt = ledger.open_attempt("run", self._epoch, 0, "start")
        self._step = 0

    def __call__(self, steps: int = 1) -> None:
        stop = self._step + steps
        self._ledger.charge_steps(
            "run", self._epoch, self._attempt, self._step, stop, f"{stop:032x}"
        )
        self._step = stop


def each_s(call: Callable[[], object], times: int) -> NDArray[np.float64]:
    """Returns the seconds of each of several calls."""
    marks = np.empty(times + 1)
    marks[0] = time.perf_counter()
    for index in range(times):
        call()
        marks[index + 1] = time.perf_counter()
    return np.diff(marks)


def syncs_per_s(folder: Path, times: int) -> float:
    """Appends pages to a file and waits for the disk after each."""
    descriptor = os.open(folder / "page", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write() -> None:
        os.write(descriptor, PAGE)
        os.fdatasync(descriptor)

    try:
        return times / float(each_s(write, times).sum())
    finally:
        os.close(descriptor)


def measure_ledger(card: Card, folder: Path, sizes: Sizes) -> None:
    """Single charges and grants, with the disk's own syncs before and after."""
    with new_ledger(folder) as ledger:
        charge = Charger(ledger)
        each_s(charge, 50)
        syncs = [syncs_per_s(folder, sizes.grants)]
        single = each_s(charge, sizes.charges)
        syncs.append(syncs_per_s(folder, sizes.grants))
        grants = each_s(lambda: charge(GRANT), sizes.grants)
    rate = sizes.charges / float(single.sum())
    disk = float(np.mean(syncs))
    slowest = 1000 * float(np.quantile(single, 0.99))
    steps = GRANT * sizes.grants / float(grants.sum())
    card.details |= {"syncs_per_s": syncs, "single_s": single.tolist()}
    card.figures += [
        Figure("single charges", rate, "a second", 1000),
        Figure("single charge, 99 of 100 within", slowest, "ms", at_most=20),
        Figure(f"steps in grants of {GRANT}", steps, "a second", 50_000),
        Figure("this disk: 4 KiB append and fdatasync", disk, "a second"),
        Figure("charges over syncs of the disk", rate / disk, "x"),
    ]


def measure_actor(card: Card, folder: Path, sizes: Sizes) -> None:
    """One rank asks the coordinator's actor for its grants, one after another."""
    from pft_ray.cluster.actors import (
        CoordinatorClient,
        start_coordinator,
        stop_coordinator,
    )
    from pft_ray.cluster.coordinator import CoordinatorConfig
    from pft_ray.cluster.local import ray_cluster

    new_ledger(folder).close()
    config = CoordinatorConfig(
        str(folder / "ledger.db"), str(folder / "keys"), "run", str(folder / "anchor")
    )
    with ray_cluster(None, num_cpus=1):
        try:
            client = CoordinatorClient(start_coordinator(config), 0, new_token())
            attempt = client.open_attempt([client.token], 0, "start")
            done = 0

            def ask(steps: int) -> None:
                nonlocal done
                reply = client.request(attempt, done, done + steps)
                assert len(reply.steps) == steps
                done += steps

            each_s(lambda: ask(1), 50)
            times = {
                steps: each_s(lambda steps=steps: ask(steps), sizes.calls)
                for steps in (1, 5, GRANT)
            }
        finally:
            stop_coordinator("run")
    rates = {steps: len(taken) / float(taken.sum()) for steps, taken in times.items()}
    slowest = 1000 * float(np.quantile(times[1], 0.99))
    card.figures += [
        Figure("single charges through the actor", rates[1], "a second", 600),
        Figure("the same, 99 of 100 within", slowest, "ms"),
        Figure("grants of 5 through the actor", rates[5], "a second"),
        Figure(
            f"steps in grants of {GRANT} through the actor",
            GRANT * rates[GRANT],
            "a second",
        ),
    ]


def main() -> None:
    given = options()
    sizes = QUICK if given.quick else FULL
    card = Card(
        "ledger",
        "The ledger: durable charges",
        "ledger",
        "SQLite with a write-ahead log and synchronous=FULL, one writer, an empty "
        "ledger at the start. A charge is one append in one transaction and returns "
        "when it is on the disk. Through the actor: one client asks the coordinator "
        "of a local Ray for one grant after another and waits for its keys.",
        quick=given.quick,
    )
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        place = Path(folder)
        card.notes.append(f"The ledger lies on {machine.file_system(place)}.")
        os.environ |= {"HOME": folder, "PFT_HOME": str(place / "home")}
        for name in ("direct", "actor"):
            (place / name).mkdir()
        measure_ledger(card, place / "direct", sizes)
        measure_actor(card, place / "actor", sizes)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
