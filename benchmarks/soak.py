"""The kill matrix for hours: random victims at random points, with and without Ray.

It is the code of the tests, with more kills. The seed gives the kills; the machine's
timing gives the rest.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cards

from tests.kills.cases import NAMES, Kill, random_kills, random_ray_runs
from tests.kills.journal import RUN, charged_steps
from tests.kills.judge import Evidence, Judge
from tests.kills.plain import Stage
from tests.kills.ray_runs import (
    RayStage,
    planned_epsilon,
    rebirth_faults,
    secrets_stored,
)

RAY_SHARE = 0.3
PER_RUN = 10
_MOST_ROUNDS = 3
CLEAN = ("completed", "budget_exhausted")


@dataclass
class Row:
    """What came of the kills of one victim at one point."""

    kills: int = 0
    resumed: int = 0
    ended: int = 0
    charged: int = 0
    released: int = 0
    reused: int = 0
    other_epsilon: int = 0


@dataclass
class Tally:
    """All results so far.

    Attributes:
        plain: Rows by (victim, point) of runs without Ray, one kill each.
        on_ray: Rows by (victim, point) of kills through Ray Train; steps stay 0.
        runs: One row for each run on Ray.
        faults: What was found to be wrong, in words.
    """

    plain: dict[tuple[str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    on_ray: dict[tuple[str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    runs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def count(self, name: str) -> int:
        rows = (*self.plain.values(), *self.on_ray.values())
        return sum(getattr(row, name) for row in rows)


def judge_run(judge: Judge, evidence: Evidence, row: Row) -> list[str]:
    """Adds a run to a row; returns what is wrong with it."""
    faults = judge.faults(evidence)
    row.charged += len(charged_steps(evidence.ledger, evidence.run_id))
    row.released += len(evidence.released)
    row.reused += sum(" twice" in fault or "key" in fault for fault in faults)
    row.other_epsilon += evidence.report_epsilon not in (None, judge.epsilon)
    return faults


def soak_plain(tally: Tally, kills: list[Kill], until: float) -> None:
    """One run for each kill, in processes of its own."""
    stage = Stage()
    try:
        judge = Judge(stage.run([]).report["epsilon"])
        for number, kill in enumerate(kills, 1):
            if time.monotonic() > until:
                return
            _plain_cell(stage, judge, tally, kill)
            print(f"  {number}/{len(kills)} {kill}", flush=True)
    finally:
        stage.close()


def _plain_cell(stage: Stage, judge: Judge, tally: Tally, kill: Kill) -> None:
    row = tally.plain[kill.victim, NAMES[kill.point]]
    try:
        cell = stage.run([kill])
    except AssertionError as error:
        row.kills += 1
        tally.faults.append(f"{kill}: {str(error)[-300:]}")
        return
    if not cell.struck:
        tally.faults.append(f"{kill}: the run did not come to its point")
        return
    row.kills += 1
    row.resumed += cell.status in CLEAN
    row.ended += cell.status == "failed"
    journal = cell.folder / "journal"
    evidence = Evidence(cell.ledger, RUN, journal, cell.report["epsilon"])
    tally.faults += [f"{kill}: {f}" for f in judge_run(judge, evidence, row)]


def soak_ray(tally: Tally, seed: int, count: int, until: float) -> None:
    """Runs on Ray Train with ten kills each, on a cluster of our own.

    A run may end before its last kills come up: further runs make up for them.
    """
    for extra in range(_MOST_ROUNDS):
        missing = count - sum(row.kills for row in tally.on_ray.values())
        if missing > 0:
            _ray_round(tally, random_ray_runs(seed + extra, missing, PER_RUN), until)


def _ray_round(tally: Tally, runs: list[list[Kill]], until: float) -> None:
    stage: RayStage | None = None
    try:
        for kills in runs:
            if time.monotonic() > until:
                return
            stage = stage or RayStage()
            try:
                _ray_run(stage, tally, kills)
            except AssertionError:
                tally.faults.append(traceback.format_exc()[-1500:])
                stage.close()
                stage = None
    finally:
        if stage is not None:
            stage.close()


def _ray_run(stage: RayStage, tally: Tally, kills: list[Kill]) -> None:
    run = stage.run(kills, look_at_reborn=True)
    epsilon = run.report["epsilon"] if run.report else None
    evidence = Evidence(run.ledger, run.run_id, run.folder / "journal", epsilon)
    total = Row()
    faults = judge_run(Judge(planned_epsilon(run.folder)), evidence, total)
    faults += rebirth_faults(run) + secrets_stored(stage, run)
    tally.faults += [f"run {len(tally.runs) + 1}: {fault}" for fault in faults]
    for number, kill in enumerate(run.struck, 1):
        row = tally.on_ray[kill.victim, NAMES[kill.point]]
        is_last = number == len(run.struck)
        row.kills += 1
        row.resumed += not is_last or run.status in CLEAN
        row.ended += is_last and run.status not in CLEAN
        row.reused += is_last * total.reused
    tally.runs.append(
        f"| {len(tally.runs) + 1} | {len(run.struck)} of {len(kills)} | {run.drivers} "
        f"| {run.status} | {total.charged} | {total.released} | {total.reused} "
        f"| {'yes' if not total.other_epsilon else 'no'} | {run.elapsed_s:.0f} s |"
    )
    print(f"  ray {tally.runs[-1]}", flush=True)


def table(rows: dict[tuple[str, str], Row], *, with_steps: bool) -> list[str]:
    """Returns a Markdown table, one line for each victim and point."""
    heads = ["victim", "point", "kills", "resumed", "ended by design"]
    if with_steps:
        heads += ["steps charged", "released", "reuse", "epsilon equal"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (victim, point), row in sorted(rows.items()):
        cells = [victim, point, row.kills, row.resumed, row.ended]
        if with_steps:
            equal = f"{row.kills - row.other_epsilon} of {row.kills}"
            cells += [row.charged, row.released, row.reused, equal]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _as_list(rows: dict[tuple[str, str], Row]) -> list[dict]:
    return [
        {"victim": victim, "point": point} | asdict(row)
        for (victim, point), row in sorted(rows.items())
    ]


def make_card(tally: Tally, seed: int, wanted: int, elapsed_s: float) -> cards.Card:
    """Returns the card of a soak."""
    made = tally.count("kills")
    num_ray = sum(row.kills for row in tally.on_ray.values())
    measured = [
        f"SIGKILL of workers, coordinator, driver, PostgreSQL and, on Ray, control "
        f"store and head node, at random points: {made} of {wanted} kills, {num_ray} "
        f"of them through Ray Train. Seed {seed}. After every run an observer that "
        "shares no code with it compares what was released with the ledger's rows.",
        "",
        "## Without Ray: one kill a run",
        "",
        *table(tally.plain, with_steps=True),
        "",
        f"## Ray Train: {PER_RUN} kills a run",
        "",
        *table(tally.on_ray, with_steps=False),
        "",
        "| run | kills | drivers | status | steps charged | released | reuse "
        "| epsilon equal | time |",
        "|---" * 9 + "|",
        *tally.runs,
        "",
    ]
    lost = made - tally.count("resumed") - tally.count("ended")
    figures = [
        cards.Figure("kills made", made, at_least=wanted),
        cards.Figure("of them through Ray Train", num_ray),
        cards.Figure(
            "kills after which the run neither resumed nor ended", lost, at_most=0
        ),
        cards.Figure("keys or shares used twice", tally.count("reused"), at_most=0),
        cards.Figure("faults found", len(tally.faults), at_most=0),
        cards.Figure("minutes", elapsed_s / 60),
    ]
    return cards.Card(
        "soak",
        "Soak: kills at random points",
        "soak",
        "\n".join(measured),
        figures,
        notes=[
            f"All {wanted}: `SOAK_SEED={seed} SOAK_KILLS={wanted} make soak`.",
            *tally.faults[:20],
        ],
        details={
            "seed": seed,
            "faults": tally.faults,
            "plain": _as_list(tally.plain),
            "on_ray": _as_list(tally.on_ray),
        },
    )


def main() -> int:
    """Soaks as the environment says; 1 when something was wrong."""
    args = cards.options()
    seed = int(os.environ.get("SOAK_SEED") or int.from_bytes(os.urandom(3)))
    wanted = int(os.environ.get("SOAK_KILLS") or 200)
    minutes = float(os.environ.get("SOAK_MINUTES") or 24 * 60)
    num_ray = round(RAY_SHARE * wanted)
    print(f"SOAK_SEED={seed} SOAK_KILLS={wanted}", flush=True)
    tally, start = Tally(), time.monotonic()
    until = start + 60 * minutes
    # The rarer kind first, so that a soak that is cut short has both.
    soak_ray(tally, seed, num_ray, start + 60 * minutes / 2)
    soak_plain(tally, random_kills(seed, wanted - num_ray), until)
    card = make_card(tally, seed, wanted, time.monotonic() - start)
    for fault in tally.faults:
        print(f"  FAULT {fault}")
    is_met = card.write(args.out)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
