"""The scaling policy on seeded traces, against a fixed size and a blind trainer."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from cards import Card, Figure, options
from scaling_contestants import Blind, Elastic, Reserved, Static
from scaling_runs import RESIZE_S, RESTART_S, Job
from traces import HORIZON_S, KINDS, SLOTS, Trace, make_trace

from pft_ray.scaling import (
    ClusterSnapshot,
    Limits,
    Node,
    NodeType,
    PhaseWork,
    StepTime,
    decide,
)
from pft_ray.scaling.faults import FaultModel, choose_faults

SEEDS = (1, 2, 3, 4)
HELD_OUT = (101, 102, 103, 104, 105)  # not looked at while limits and F were chosen
MAX_SLOWDOWN = 0.06
GRANT_SIZE, CHECKPOINT_S, RISK = 5, 5.0, 0.01
MAX_RESERVES = (0.05, 0.1)  # the second where the first leaves too much risk
HEAD_STEPS, ADAPTER_STEPS = 1200, 600
FIXED_PARTS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RUNS = {"elastic": Elastic, "static": Static, "reserved": Reserved, "blind": Blind}


class Workload(NamedTuple):
    """How the phases scale; times are seconds a step at the largest size.

    The head phase works on cached features and is nearly all overhead. The adapter
    phase is at ``efficiency`` at the largest size: the part of its step that is shared
    work.
    """

    head_steps: int = HEAD_STEPS
    efficiency: float = 0.5

    def step_times(self, num_workers: int) -> tuple[StepTime, StepTime]:
        """Returns the step times of head and adapter phase for a run of this size."""
        shared = 6.0 * self.efficiency
        return (
            StepTime(1.5, 0.03 * num_workers),
            StepTime(6.0 - shared, shared * num_workers, 0.2 / num_workers),
        )


def make_job(trace: Trace, workload: Workload) -> Job:
    """Returns the job: interval and reserve from the trace's public loss rate."""
    head, adapter = workload.step_times(trace.num_workers)
    head_s, adapter_s = (t.seconds(trace.num_workers) for t in (head, adapter))
    num_steps = workload.head_steps + ADAPTER_STEPS
    model = FaultModel(
        num_steps,
        max(head_s, adapter_s),
        trace.kind.losses * (1 - trace.kind.announced),
        -(-trace.num_workers // trace.num_slots),
        CHECKPOINT_S,
        GRANT_SIZE,
        RESTART_S,
    )
    plans = [choose_faults(model, max_reserve=m, risk=RISK) for m in MAX_RESERVES]
    faults = next((plan for plan in plans if plan.risk <= RISK), plans[-1])
    more_s = CHECKPOINT_S / faults.checkpoint_interval
    phases = (
        PhaseWork(workload.head_steps, replace(head, serial_s=head.serial_s + more_s)),
        PhaseWork(ADAPTER_STEPS, replace(adapter, serial_s=adapter.serial_s + more_s)),
    )
    return Job(phases, GRANT_SIZE, faults.checkpoint_interval, faults.fault_reserve)


def limits_for(trace: Trace, most: int | None = None) -> Limits:
    """Returns the limits of a run: a tenth of the workers at least."""
    num_workers = trace.num_workers
    return Limits(
        max(1, num_workers // 10),
        most or num_workers,
        num_shares=num_workers,
        max_slowdown=MAX_SLOWDOWN,
        resize_s=RESIZE_S,
    )


def run_all(trace: Trace, job: Job) -> dict[str, Any]:
    """Returns what each contestant comes to on one trace, with the ratios."""
    limits = limits_for(trace)
    outcomes = {
        name: asdict(kind(trace, job, limits).run(HORIZON_S))
        for name, kind in RUNS.items()
    }
    elastic, static = outcomes["elastic"], outcomes["static"]
    reserved = outcomes["reserved"]
    money = static["money"]
    row = {
        "steps": job.num_steps,
        "steps_max": job.num_steps_max,
        "checkpoint_interval": job.checkpoint_interval,
        "finished": all(outcomes[n]["finished"] for n in ("elastic", "static")),
        "node_hours": elastic["node_hours"] / static["node_hours"],
        "time": elastic["time_s"] / static["time_s"],
        "money": elastic["money"] / money if money else None,
        "time_reserved": elastic["time_s"] / reserved["time_s"],
        "node_hours_reserved": elastic["node_hours"] / reserved["node_hours"],
        "node_hours_fixed": elastic["node_hours"] / best_fixed(trace, job, reserved),
    }
    return row | {"outcomes": outcomes}


def best_fixed(trace: Trace, job: Job, reserved: dict[str, Any]) -> float:
    """Returns the node-hours of the best fixed size, chosen after the fact.

    Of reserved groups of half to all of the workers: the cheapest that needs at most
    10 % more time than the largest.
    """
    best = reserved["node_hours"]
    for part in FIXED_PARTS:
        size = max(1, int(part * trace.num_workers))
        outcome = Reserved(trace, job, limits_for(trace, size)).run(HORIZON_S)
        if outcome.finished and outcome.time_s <= 1.1 * reserved["time_s"]:
            best = min(best, outcome.node_hours)
    return best


def measure_decisions(card: Card, count: int) -> None:
    """Times the policy on random snapshots of 1,000 nodes, the best of three each."""
    generator = np.random.default_rng(20_261_124)
    times, codes = [], {}
    for _ in range(count):
        seen = random_snapshot(generator)
        decision, tries = decide(seen), []
        for _ in range(3):
            start = time.perf_counter()
            decide(seen)
            tries.append(1000 * (time.perf_counter() - start))
        times.append(min(tries))
        codes[decision.code] = codes.get(decision.code, 0) + 1
    card.figures += [
        Figure("a decision on 1,000 nodes, 99 %", quantile(times, 99), "ms", None, 5.0),
        Figure("a decision on 1,000 nodes, median", quantile(times, 50), "ms"),
        Figure("a decision on 1,000 nodes, longest", max(times), "ms"),
    ]
    card.details["decisions"] = {"count": count, "codes": codes}


def random_snapshot(generator: np.random.Generator) -> ClusterSnapshot:
    """Returns a random cluster of 1,000 nodes in three regions, two of them allowed."""
    regions = ("eu-1", "eu-2", "us-1")
    slots = generator.integers(1, 5, 1000).tolist()
    used = generator.integers(0, 900)
    place = generator.integers(0, 3, 1000).tolist()
    prices = generator.uniform(0.3, 3.0, 1000).tolist()
    leaves = generator.uniform(size=1000) < generator.choice([0.0, 0.0, 0.002])
    nodes = []
    for index in range(1000):
        holds = index < used and place[index] < 2
        nodes.append(
            Node(
                f"node-{index}",
                slots[index],
                int(generator.integers(1, slots[index] + 1)) if holds else 0,
                regions[place[index]],
                prices[index],
                leaves_in_s=120.0 if leaves[index] else None,
            )
        )
    num_workers = sum(node.num_workers for node in nodes)
    kinds = tuple(
        NodeType(f"kind-{index}", 4, 250, regions[index % 3], 1.0 + index)
        for index in range(6)
    )
    shared = float(generator.uniform(50, 3000))
    work = (
        PhaseWork(int(generator.integers(1, 500)), StepTime(1.0, 20.0)),
        PhaseWork(int(generator.integers(1, 5000)), StepTime(0.5, shared, 1e-4)),
    )
    limits = Limits(
        10,
        max(2000, num_workers),
        num_shares=max(2000, num_workers),
        allowed_regions=frozenset(regions[:2]),
    )
    paid = int(generator.integers(1, 6000))
    return ClusterSnapshot(1000.0, num_workers, work, paid, tuple(nodes), kinds, limits)


def quantile(values: list[float], percent: float) -> float:
    """Returns a percentile."""
    return float(np.percentile(values, percent))


def add_figures(card: Card, rows: dict[str, dict[str, Any]]) -> None:
    """Adds what the policy reaches on the traces; ratios are elastic over static."""
    every = list(rows.values())
    own = [row["outcomes"]["elastic"] for row in every]
    hours = [row["node_hours"] for row in every]
    times = [row["time"] for row in every]
    money = [row["money"] for row in every if row["money"] is not None]
    finished = sum(row["finished"] for row in every)
    over = sum(beyond(row, "elastic") for row in every)
    bare = sum(max(0, row["most_uncharged"]) for row in own)
    again = sum(row["again_planned"] for row in own)
    card.figures += [
        Figure("traces", len(every)),
        Figure("both finish all T steps", finished, "traces", len(every)),
        Figure("node-hours over static, worst trace", max(hours), "x", None, 0.75),
        Figure("node-hours over static, median", quantile(hours, 50), "x"),
        Figure("time over static, worst trace", max(times), "x", None, 1.1),
        Figure("time over static, median", quantile(times, 50), "x"),
        Figure("steps beyond T_max", over, "", None, 0),
        Figure("steps made before they were charged", bare, "", None, 0),
        Figure("steps made again for planned resizes", again, "", None, 0),
        Figure("planned resizes", sum(row["resizes"] for row in own)),
        Figure("losses that hit it", sum(row["losses"] for row in own)),
        Figure("steps made again after losses", sum(r["again_lost"] for r in own)),
        Figure("money over static, worst trace with prices", max(money), "x"),
        Figure("money over static, median", quantile(money, 50), "x"),
    ]


def add_comparisons(card: Card, rows: dict[str, dict[str, Any]]) -> None:
    """Adds harder baselines, and what the blind trainer does."""
    every = list(rows.values())
    times = [row["time_reserved"] for row in every]
    hours = [row["node_hours_reserved"] for row in every]
    fixed = [row["node_hours_fixed"] for row in every]
    pairs = [(row["outcomes"]["blind"], row["outcomes"]["static"]) for row in every]
    blind = [one for one, _ in pairs]
    spent = [one["node_hours"] / other["node_hours"] for one, other in pairs]
    uncounted = sum(
        row["outcomes"]["blind"]["executed"] - row["steps"]
        for row in every
        if row["outcomes"]["blind"]["finished"]
    )
    over = [beyond(row, "blind") for row in every]
    card.figures += [
        Figure("time over reserved static, worst trace", max(times), "x"),
        Figure("traces where that is above 1.1", sum(t > 1.1 for t in times)),
        Figure("node-hours over reserved static, worst trace", max(hours), "x"),
        Figure(
            "node-hours over the best fixed size in hindsight, worst", max(fixed), "x"
        ),
        Figure("the same, median", quantile(fixed, 50), "x"),
        Figure("blind: resizes", sum(row["resizes"] for row in blind)),
        Figure(
            "blind: steps made again for resizes",
            sum(r["again_planned"] for r in blind),
        ),
        Figure(
            "blind: steps made again after losses", sum(r["again_lost"] for r in blind)
        ),
        Figure("blind: steps that T does not count", uncounted),
        Figure("blind: steps beyond T_max", sum(over)),
        Figure("blind: traces beyond T_max", sum(bool(count) for count in over)),
        Figure("blind: node-hours over static, median", quantile(spent, 50), "x"),
    ]


def add_held_out(card: Card, sizes: tuple[int, ...]) -> None:
    """Adds the same on seeds that had no part in choosing limits and reserve."""
    traces = [
        make_trace(kind, size, seed)
        for kind in KINDS
        for size in sizes
        for seed in HELD_OUT
    ]
    rows = {t.name: run_all(t, make_job(t, Workload())) for t in traces}
    within = sum(
        row["node_hours"] <= 0.75 and row["time"] <= 1.1 and row["finished"]
        for row in rows.values()
    )
    hours = max(row["node_hours"] for row in rows.values())
    times = max(row["time"] for row in rows.values())
    card.figures += [
        Figure("held-out traces within both targets", within, f"of {len(rows)}"),
        Figure("held-out: node-hours over static, worst trace", hours, "x"),
        Figure("held-out: time over static, worst trace", times, "x"),
    ]


def beyond(row: dict[str, Any], name: str) -> int:
    """Returns the steps that a contestant made beyond T_max."""
    return max(0, row["outcomes"][name]["executed"] - row["steps_max"])


def add_sensitivity(card: Card) -> None:
    """Says what the saving rests on: other head phases, other efficiencies."""
    trace = make_trace("on_demand", 100, SEEDS[0])
    table = []
    for head_steps in (60, 600, 1200, 2400):
        for efficiency in (0.5, 0.65, 0.8):
            job = make_job(trace, Workload(head_steps, efficiency))
            limits = limits_for(trace)
            elastic = Elastic(trace, job, limits).run(HORIZON_S)
            static = Static(trace, job, limits).run(HORIZON_S)
            table.append(
                {
                    "head_steps": head_steps,
                    "efficiency": efficiency,
                    "node_hours": elastic.node_hours / static.node_hours,
                    "time": elastic.time_s / static.time_s,
                }
            )
            card.notes.append(
                f"{trace.name} with {head_steps} head steps and efficiency "
                f"{efficiency:g}: node-hours {table[-1]['node_hours']:.2f}, time "
                f"{table[-1]['time']:.2f} of static."
            )
    card.notes.append(
        "The saving comes from phases that scale differently: the head phase gives its "
        "nodes back. With next to no head phase it is a few per cent only."
    )
    card.details["sensitivity"] = table


MEASURED = (
    "A simulation, seeded; no cluster runs. The policy is the package's own `decide`, "
    "called with a snapshot every 30 s and at every event. {traces} traces: {kinds}, "
    "each for {sizes} workers and the seeds {seeds}; `traces.py` says how they are "
    "drawn. The job: {head} head steps (1.53 s at the largest size, nearly all of it "
    "fixed) and {adapter} adapter steps (6.2 s, half of it shared out), the 2 to 1 of "
    "the quickstart; a checkpoint takes {checkpoint:g} s, a planned resize {resize:g} "
    "s, a restart after a loss {restart:g} s, grants cover {grant} steps. Interval and "
    "reserve come from `choose_faults` (risk 1 %, at most T/20, or T/10 "
    "where that is too little). Limits of the elastic "
    "run: a tenth to all of the workers, max_slowdown {slowdown}. *Static*: a group of "
    "the largest size that waits until its nodes are free at once and holds them to "
    "the end; a lost node is replaced as fast as one starts, an announced loss is met "
    "with a checkpoint. *Reserved static*: the same, its nodes kept free before the "
    "run. *Blind*: takes every free node at once, resizes as if after a failure, asks "
    "no ledger. Same plan, hence same epsilon, for all that finish T steps within "
    "T_max. Nodes are paid from the request to their return. The limits of the run and "
    "the size of the reserve were chosen on the {traces} traces; held-out traces have "
    "seeds that were drawn afterwards."
)


def main() -> None:
    given = options()
    sizes = (10, 100) if given.quick else tuple(SLOTS)
    seeds = SEEDS[:1] if given.quick else SEEDS
    rows = {}
    for kind in KINDS:
        for size in sizes:
            for seed in seeds:
                trace = make_trace(kind, size, seed)
                rows[trace.name] = run_all(trace, make_job(trace, Workload()))
                row = rows[trace.name]
                print(
                    f"{trace.name}: node-hours {row['node_hours']:.3f}, time "
                    f"{row['time']:.3f} ({row['time_reserved']:.3f} of reserved)"
                )
    card = Card(
        "scaling-sim",
        "The scaling policy on traces, beside a fixed size and a blind trainer",
        "scaling_sim",
        MEASURED.format(
            traces=len(rows),
            kinds=", ".join(KINDS),
            sizes=", ".join(f"{size:,}" for size in sizes),
            seeds=", ".join(map(str, seeds)),
            head=HEAD_STEPS,
            adapter=ADAPTER_STEPS,
            checkpoint=CHECKPOINT_S,
            resize=RESIZE_S,
            restart=RESTART_S,
            grant=GRANT_SIZE,
            slowdown=MAX_SLOWDOWN,
        ),
        quick=given.quick,
    )
    add_figures(card, rows)
    add_comparisons(card, rows)
    add_held_out(card, sizes)
    measure_decisions(card, 50 if given.quick else 1000)
    add_sensitivity(card)
    card.details["traces"] = rows
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
