"""Admission orders on a made-up trace: who gets in, how fair, at what cost."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import machine
import numpy as np
from cards import Card, Figure, options

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.errors import BudgetError
from pft_ray.ledger import BlockSpec, Envelope, Ledger
from pft_ray.ledger.admission import Job, Order, Supply, is_possible, next_job

SEED = 20_261_124
EPSILON, DELTA = 10.0, 1e-3  # of a block
JOB_DELTA = 1e-9
MOUSE, ELEPHANT = Fraction(1, 50), Fraction(1, 5)  # of a block's epsilon
NUM_TENANTS, NUM_MICE_TENANTS = 20, 15
WIDE = 10
NS = (10, 20, 40, 80)


class Sizes(NamedTuple):
    """How large the trace is."""

    jobs: int
    blocks: int


FULL, QUICK = Sizes(1000, 100), Sizes(60, 10)


@dataclass(frozen=True)
class Arrival:
    """One job of the trace."""

    job: Job
    tenant: int
    is_mouse: bool


def make_trace(sizes: Sizes) -> list[Arrival]:
    """Returns the jobs in order of arrival; the same for every order."""
    random = np.random.default_rng(SEED)
    share_of_delta = Fraction(1, 10**6)
    trace = []
    for number in range(sizes.jobs):
        newest = number * sizes.blocks // sizes.jobs
        width = WIDE if random.random() < 0.5 else 1
        tenant = int(random.integers(NUM_TENANTS))
        is_mouse = tenant < NUM_MICE_TENANTS
        parts = (MOUSE if is_mouse else ELEPHANT, share_of_delta)
        blocks = range(max(0, newest - width + 1), newest + 1)
        demand = {f"block-{block}": parts for block in blocks}
        trace.append(Arrival(Job(f"job-{number}", demand), tenant, is_mouse))
    return trace


@dataclass
class Outcome:
    """What one order did with the trace."""

    admitted: set[str] = field(default_factory=set)
    waits: list[int] = field(default_factory=list)
    used: Fraction = Fraction(0)
    elapsed_s: float = 0.0
    longest_queue: int = 0


def simulate(order: Order, trace: list[Arrival]) -> Outcome:
    """Feeds the trace to the scheduler; what is admitted is charged at once.

    Jobs that can never fit any more leave, as waiting runs do.
    """
    outcome, waiting = Outcome(), []
    supplies: dict[str, Supply] = {}
    whole = (Fraction(1), Fraction(1))
    came = {}
    start = time.perf_counter()
    for place, arrival in enumerate(trace):
        job = arrival.job
        came[job.name] = place
        for name in job.demand:
            supplies.setdefault(name, Supply(whole, whole, 0))
        if not is_possible(job, supplies):
            continue  # refused: it never waits, and unlocks nothing
        for name in job.demand:
            known = supplies[name]
            supplies[name] = known._replace(num_arrivals=known.num_arrivals + 1)
        waiting.append(job)
        while (found := next_job(order, waiting, supplies)) is not None:
            waiting.remove(found)
            _charge(found, supplies)
            outcome.admitted.add(found.name)
            outcome.waits.append(place - came[found.name])
            waiting = [w for w in waiting if is_possible(w, supplies)]
        outcome.longest_queue = max(outcome.longest_queue, len(waiting))
    outcome.elapsed_s = time.perf_counter() - start
    outcome.used = sum((1 - s.left[0] for s in supplies.values()), Fraction(0))
    return outcome


def _charge(job: Job, supplies: dict[str, Supply]) -> None:
    for name, parts in job.demand.items():
        supply = supplies[name]
        left = tuple(a - b for a, b in zip(supply.left, parts, strict=True))
        supplies[name] = supply._replace(left=left, unused=left)


def jain(values: list[float]) -> float:
    """Returns the fairness index of Jain et al. 1984: 1 when all are equal."""
    total = sum(values)
    squares = sum(value * value for value in values)
    return total * total / (len(values) * squares) if squares else 0.0


def tenants_served(trace: list[Arrival], admitted: set[str]) -> list[float]:
    """Returns each tenant's share of its own jobs that were admitted."""
    asked = Counter(arrival.tenant for arrival in trace)
    got = Counter(a.tenant for a in trace if a.job.name in admitted)
    return [got[tenant] / number for tenant, number in sorted(asked.items())]


def share_admitted(trace: list[Arrival], admitted: set[str], *, mice: bool) -> float:
    """Returns the share of small (or large) jobs that were admitted."""
    names = [a.job.name for a in trace if a.is_mouse == mice]
    return sum(name in admitted for name in names) / len(names)


def new_ledger(folder: Path, sizes: Sizes, order: Order) -> Ledger:
    """Makes a ledger with all blocks of the trace and its order."""
    folder.mkdir()
    ledger = Ledger.open(folder / "ledger.db", keys_dir=folder / "keys", create=True)
    rows = np.arange(32, dtype=np.uint8).reshape(2, 16)
    ledger.register_dataset("d", public=True, namespaces={"record": rows}, facts={})
    for number in range(sizes.blocks):
        predicate = {"kind": "day", "day": number}
        name = f"block-{number}"
        ledger.create_block(BlockSpec(name, "d", predicate, "record", EPSILON, DELTA))
    ledger.queue.set_order(order.kind, order.dpf_n)
    return ledger


class Driver:
    """Sends a trace through a real ledger and charges whoever is admitted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._plan = Plan(
            unit="record",
            size=10_000,
            sample_rate=0.001,
            noise_multiplier=50.0,
            phases=(Phase("all", 1, "head", 1.0),),
            fault_reserve=0,
            delta=JOB_DELTA,
            grant_size=1,
        )
        self.admitted: set[str] = set()
        self.queue_s = 0.0

    def request(self, job: Job) -> None:
        """Requests what a job demands; the time of queueing alone is counted."""
        queue, plan = self._ledger.queue, self._plan
        envelopes = [
            Envelope.priced(
                block, "training", float(parts[0]) * EPSILON, JOB_DELTA, plan.event
            )
            for block, parts in job.demand.items()
        ]
        start = time.perf_counter()
        try:
            # A time limit, so that the ledger lists what is reserved and not used.
            queue.request(job.name, plan, envelopes, time_limit_s=3600.0)
        except BudgetError:
            return  # it can never fit
        finally:
            self.queue_s += time.perf_counter() - start
        while self._charge_reserved():
            start = time.perf_counter()
            queue.admit()
            self.queue_s += time.perf_counter() - start

    def _charge_reserved(self) -> bool:
        """Charges all that is reserved and unused; says whether there was any."""
        names = [name for name, _ in self._ledger.queue.limited()]
        for name in names:
            epoch = self._ledger.take_epoch(name)
            attempt = self._ledger.open_attempt(name, epoch, 0, "start")
            self._ledger.charge_steps(name, epoch, attempt, 0, 1, "0" * 32)
            self.admitted.add(name)
        return bool(names)


def measure_orders(card: Card, sizes: Sizes, trace: list[Arrival]) -> dict[Order, set]:
    """Simulates every order and adds its figures; returns who got in."""
    admitted = {}
    for order in (Order(), *(Order("dpf", n) for n in NS)):
        outcome = simulate(order, trace)
        name = f"{order.kind} N={order.dpf_n}" if order.dpf_n else order.kind
        share = {
            mice: share_admitted(trace, outcome.admitted, mice=mice)
            for mice in (True, False)
        }
        served = tenants_served(trace, outcome.admitted)
        waited = float(np.mean(outcome.waits)) if outcome.waits else 0.0
        card.figures += [
            Figure(f"{name}: jobs admitted", len(outcome.admitted)),
            Figure(
                f"{name}: budget used", 100 * float(outcome.used) / sizes.blocks, "%"
            ),
            Figure(f"{name}: small jobs admitted", 100 * share[True], "%"),
            Figure(f"{name}: large jobs admitted", 100 * share[False], "%"),
            Figure(f"{name}: Jain index of the tenants", jain(served)),
            Figure(f"{name}: mean wait of the admitted", waited, "arrivals"),
            Figure(f"{name}: scheduler, whole trace", outcome.elapsed_s, "s"),
        ]
        card.details[name] = {
            "longest_queue": outcome.longest_queue,
            "tenants_served": served,
        }
        admitted[order] = outcome.admitted
    most = max(len(names) for order, names in admitted.items() if order.dpf_n)
    gain = most / len(admitted[Order()])
    # The trace and the scheduler are exact: the number moves only with the code.
    goal = None if card.quick else 1.2
    card.figures.insert(
        0, Figure("jobs admitted, best dpf over fcfs", gain, "x", at_least=goal)
    )
    return admitted


def measure_ledger(
    card: Card, folder: Path, sizes: Sizes, admitted: dict[Order, set]
) -> None:
    """Sends the trace through SQLite under two orders and compares who got in."""
    trace = make_trace(sizes)
    for order in (Order(), Order("dpf", NS[1])):
        with new_ledger(folder / order.kind, sizes, order) as ledger:
            driver = Driver(ledger)
            for arrival in trace:
                driver.request(arrival.job)
            entries = ledger.position().sequence
        start = time.perf_counter()
        Ledger.open(folder / order.kind / "ledger.db").close()
        replay_s = time.perf_counter() - start
        rate = len(trace) / driver.queue_s
        card.figures += [
            Figure(f"{order.kind}: jobs through the ledger's queue", rate, "a second"),
            Figure(f"{order.kind}: replaying the {entries:,} rows", replay_s, "s"),
        ]
        same = driver.admitted == admitted[order]
        words = "admitted the same jobs as" if same else "DIFFERS from"
        card.notes.append(f"{order.kind}: the ledger {words} the simulation.")
        card.figures.append(
            Figure(f"{order.kind}: ledger and simulation agree", float(same), "", 1)
        )


def main() -> None:
    given = options()
    sizes = QUICK if given.quick else FULL
    trace = make_trace(sizes)
    small, large = (f"{100 * float(part):g} %" for part in (MOUSE, ELEPHANT))
    demanded = sum(sum(p[0] for p in a.job.demand.values()) for a in trace)
    card = Card(
        "admission",
        "Admission orders: first come first served against dominant private shares",
        "admission",
        f"A made-up trace, seed {SEED}: {sizes.jobs:,} jobs of {NUM_TENANTS} tenants "
        f"on {sizes.blocks} blocks that come one after the other, as a stream of data "
        f"makes them. {NUM_MICE_TENANTS} tenants send small jobs ({small} of a "
        f"block's epsilon), the others large ones ({large}). Half of the jobs ask "
        f"for the newest block, half for the newest {WIDE}. Together they ask "
        f"for {float(demanded) / sizes.blocks:.2f} times what there is. Mice, "
        "elephants and newest blocks follow the evaluation of Luo et al. 2021; the "
        "numbers are ours. The scheduler is the ledger's own, on exact fractions. An "
        "admitted job is charged at once; one that can never fit is refused or leaves. "
        "Jain index: over the tenants' shares of admitted jobs, 1 when all are served "
        "alike.",
        quick=given.quick,
    )
    admitted = measure_orders(card, sizes, trace)
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        card.notes.append(f"The ledger lies on {machine.file_system(Path(folder))}.")
        measure_ledger(card, Path(folder), sizes, admitted)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
