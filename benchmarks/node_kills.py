"""Random nodes lost without notice while elastic runs grow and shrink.

Each kill is a SIGKILL of everything on one node of a real autoscaling cluster. After
every run an observer that shares no code with it compares what was released with the
ledger's rows, as in the soak.
"""

from __future__ import annotations

import json
import os
import random  # noqa: TID251 - who is killed when is no secret
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cards

from pft_ray.ledger.home import ledger_location
from tests.elastic.scene import (
    Run,
    assert_sound,
    autoscaling_cluster,
    elastic_job,
    rosters,
    worker_nodes,
)
from tests.kills.journal import charged_steps
from tests.kills.judge import Evidence, Judge
from tests.kills.lost_nodes import kill_node
from tests.kills.ray_names import SCENE
from tests.kills.ray_runs import planned_epsilon

STEPS = 40
RESERVE = 40
PER_RUN = 4
PAUSE_S = 0.4
SOON_S = 20.0
_GAP = (2, 8)  # steps between a kill and the next


@dataclass
class Tally:
    """What all runs came to."""

    kills: int = 0
    waits_s: list[float] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    clean: int = 0
    planned: int = 0


def make_run(nodes, stage: Path, number: int, source, most: int, tally: Tally) -> None:
    """One run of which nodes are killed at random moments, up to ``most``."""
    folder = stage / f"run-{number}"
    job = elastic_job(
        folder,
        steps=STEPS,
        privacy__fault_reserve=RESERVE,
        cluster__max_failures=20,
        elastic={"min_interval_s": 1.0, "node_start_s": 5.0, "resize_s": 5.0},
    )
    scene = {"folder": str(folder), "job": str(job), "kills": []}
    scene |= {"ledger": ledger_location(None)}
    (stage / "scene.json").write_text(json.dumps(scene))
    run = Run.start(job, nodes, PAUSE_S)
    try:
        kills = _strike(run, nodes, source, most, tally)
        end = run.to_the_end()
    except AssertionError as error:
        tally.faults.append(f"run {number}: {str(error)[-800:]}")
        return
    finally:
        run.close()
    faults = _judge(run, end)
    tally.faults += [f"run {number}: {fault}" for fault in faults]
    is_clean = end["status"] in ("completed", "budget_exhausted")
    tally.clean += is_clean
    if not is_clean:
        tally.faults.append(f"run {number} ended: {end['error']}")
    moved = rosters(run)
    tally.planned += len(moved)
    notes = run.operator
    sizes = ", ".join(f"{a} to {b}" for a, b in moved) or "none"
    tally.rows.append(
        f"| {number} | {kills} | {end['status']} | {notes['attempts']} | "
        f"{notes['num_steps_charged']} of {STEPS} + {RESERVE} | "
        f"{notes['num_steps_released']} | {sizes} | {len(faults)} |"
    )
    print(f"  {tally.rows[-1]}", flush=True)


def _strike(run: Run, nodes, source, most: int, tally: Tally) -> int:
    """Kills a random node that holds a worker, again and again."""
    made = 0
    while made < most:
        wanted = _step(run) + source.randint(*_GAP)
        if not _until(run, lambda at=wanted: _step(run) >= at and worker_nodes(run)):
            return made
        victim = source.choice(worker_nodes(run))
        attempts, killed = run.status["attempts"], time.time()
        if not kill_node(nodes, victim):
            continue
        made += 1
        tally.kills += 1
        if not _until(run, lambda n=attempts: _is_back(run, n)):
            return made
        tally.waits_s.append(run.status["time"] - killed)
        print(f"  kill {tally.kills}: {tally.waits_s[-1]:.1f} s", flush=True)
    return made


def _step(run: Run) -> int:
    return int(run.status.get("step", 0))


def _is_back(run: Run, attempts: int) -> bool:
    """A step of a later attempt was made."""
    status = run.status
    made = status.get("released", {})
    return any(int(a) > attempts and n > 0 for a, n in made.items())


def _until(run: Run, condition) -> bool:
    """Waits for a condition; False when the run ended before."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if condition():
            return True
        if run.process.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError(f"nothing happened for 180 s\n{run.log}")


def _judge(run: Run, end: dict) -> list[str]:
    folder = run.job.parent
    epsilon = end["report"]["epsilon"] if end["report"] else None
    url, run_id = ledger_location(None), run.folder.name
    evidence = Evidence(url, run_id, folder / "journal", epsilon)
    found = Judge(planned_epsilon(folder)).faults(evidence)
    if not evidence.released <= charged_steps(url, run_id):
        found.append("a released step was not charged")
    try:
        assert_sound(run, end)
    except AssertionError as error:
        found.append(str(error)[:300])
    return found


def main() -> int:
    """Kills as many nodes as asked; 1 when something was wrong."""
    args = cards.options(kills=10, seed=int.from_bytes(os.urandom(3)))
    wanted = 2 if args.quick else args.kills
    tally, source, start = Tally(), random.Random(args.seed), time.monotonic()
    load = cards.machine.load()
    with tempfile.TemporaryDirectory(prefix="pft-nk-") as place:
        stage = Path(place)
        os.environ |= {
            "HOME": place,
            "PFT_HOME": str(stage / "home"),
            SCENE: place,
            "OMP_NUM_THREADS": "1",
        }
        number = 0
        with autoscaling_cluster(stage / "home", {SCENE: place}) as nodes:
            while tally.kills < wanted and number < 3 * wanted:
                number += 1
                most = min(PER_RUN, wanted - tally.kills)
                make_run(nodes, stage, number, source, most, tally)
    card = make_card(tally, args.seed, wanted, time.monotonic() - start, load)
    card.quick = args.quick
    for fault in tally.faults:
        print(f"  FAULT {fault}")
    return 0 if card.write(args.out) else 1


def make_card(tally, seed, wanted, elapsed_s, load) -> cards.Card:
    """Returns the card of all runs."""
    runs = len(tally.rows)
    measured = [
        f"Elastic runs of one to two workers on a real autoscaling cluster of this "
        f"machine; {tally.kills} times everything on a random node that held a worker "
        f"was killed at a random moment. Seed {seed}. The tiny model of the tests, "
        f"{STEPS} steps of at least {PAUSE_S} s, two noise shares.",
        "",
        "| run | kills | end | attempts | charged | released | planned resizes "
        "| faults |",
        "|---" * 8 + "|",
        *tally.rows,
    ]
    figures = [
        cards.Figure("nodes killed", tally.kills, at_least=wanted),
        cards.Figure(
            "steps released and not paid, and other faults",
            len(tally.faults),
            at_most=0,
        ),
        cards.Figure(
            "runs that neither finished nor stopped cleanly",
            runs - tally.clean,
            at_most=0,
        ),
        cards.Figure(
            "longest time from kill to the next step made",
            max(tally.waits_s, default=0.0),
            "s",
            at_most=SOON_S,
        ),
        cards.Figure("median of it", statistics.median(tally.waits_s or [0.0]), "s"),
        cards.Figure("planned resizes in the same runs", tally.planned),
        cards.Figure("minutes", elapsed_s / 60),
    ]
    return cards.Card(
        "node-kills",
        "Nodes lost without notice",
        "node_kills",
        "\n".join(measured),
        figures,
        notes=[
            f"`--seed {seed} --kills {wanted}` gives the same choices.",
            *tally.faults[:10],
        ],
        details={"seed": seed, "waits_s": tally.waits_s, "faults": tally.faults},
        load=load,
    )


if __name__ == "__main__":
    sys.exit(main())
