"""The elastic job on a real autoscaling cluster: a worker comes, a node is taken away.

``jobs/elastic.yaml`` runs as `pft train` runs it. Its policy adds a worker; when that
one has worked for a while, a notice as of a spot market takes one of the two nodes
away. A run of a fixed size stands beside it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cards
import yaml

from pft_ray.cluster.cluster_file import load_local_nodes
from pft_ray.cluster.nodes import AutoscalingNodes
from pft_ray.cluster.registration import create_budget

ROOT = Path(__file__).resolve().parents[1]
NOTICE_S = 90
_STEPS_AT_TWO = 15
_PATIENCE_S = 1800


@dataclass
class Watched:
    """A run in a process of its own, read from its events."""

    output: Path
    process: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path | None:
        found = list(self.output.glob("*/events.jsonl"))
        return found[0].parent if found else None

    @property
    def events(self) -> list[dict[str, Any]]:
        if self.folder is None:
            return []
        text = (self.folder / "events.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def until(self, condition) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                course = "\n".join(timeline(self)) if self.events else "no events"
                raise RuntimeError(f"it ended before what was waited for\n{course}")
            if time.monotonic() > end:
                raise RuntimeError("what was waited for did not come")
            time.sleep(0.5)

    def read(self, name: str) -> dict[str, Any]:
        assert self.folder is not None
        return json.loads((self.folder / name).read_text())


def write_job(stage: Path, name: str, *, elastic: bool, quick: bool) -> Path:
    """Writes the shipped job with places of its own; a fixed one without resizes."""
    job = yaml.safe_load((ROOT / "jobs" / "elastic.yaml").read_text())
    job["data"]["path"] = str(ROOT / "jobs" / "data" / "mail.parquet")
    job["output"] = str(stage / name)
    job["cluster"]["file"] = str(ROOT / "clusters" / "autoscaling-local.yaml")
    if quick:
        for phase in job["training"]["phases"]:
            phase["steps"] = 30
    if not elastic:
        workers = job["cluster"]["elastic"]["max_workers"]
        job["cluster"] = {"workers": workers, "cpus_per_worker": 1}
    path = stage / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def start(stage: Path, job: Path, address: str | None) -> Watched:
    """Starts `pft train` in a process of its own."""
    program = Path(sys.executable).with_name("pft")
    command = [str(program), "train", str(job), "--json"]
    if address is not None:
        command += ["--address", address]
    log = (stage / f"{job.stem}.log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    return Watched(stage / job.stem, process)


def take_away(address: str, watched: Watched) -> None:
    """Gives notice for one of the nodes that hold workers."""
    nodes = watched.of("scaling")[-1]["nodes"]
    leaving = [node["node_id"] for node in nodes if node["workers"]][-1]
    command = [sys.executable, "-m", "tests.elastic.levers", address, "drain"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, leaving, str(NOTICE_S)], cwd=ROOT, check=True, env=environment
    )


def run_elastic(stage: Path, *, quick: bool) -> Watched:
    """The job with a worker that comes and a node that goes."""
    job = write_job(stage, "elastic", elastic=True, quick=quick)
    create_budget(job, runs=3)
    file = load_local_nodes(ROOT / "clusters" / "autoscaling-local.yaml")
    with AutoscalingNodes(file, variables={"PYTHONPATH": str(ROOT)}) as nodes:
        watched = start(stage, job, nodes.address)
        watched.until(lambda: watched.of("resized"))
        grown = watched.of("resized")[0]["step"]
        watched.until(
            lambda: watched.of("charged")[-1].get("charged", 0) >= grown + _STEPS_AT_TWO
        )
        take_away(nodes.address, watched)
        watched.process.wait(_PATIENCE_S)
    return watched


def run_fixed(stage: Path, *, quick: bool) -> Watched:
    """The same job with the largest group, throughout."""
    watched = start(stage, write_job(stage, "fixed", elastic=False, quick=quick), None)
    watched.process.wait(_PATIENCE_S)
    return watched


def pauses(watched: Watched) -> list[float]:
    """Returns seconds from parked workers to the first charge of the next roster."""
    found, parked = [], None
    resized = False
    for event in watched.events:
        if event["event"] == "parked":
            parked, resized = event["time"], False
        elif event["event"] == "resized":
            resized = True
        elif event["event"] == "charged" and resized and parked is not None:
            found.append(event["time"] - parked)
            parked = None
    return found


def timeline(watched: Watched) -> list[str]:
    """Returns the course of the run as rows of a table."""
    rows = ["| seconds | event | |", "|---|---|---|"]
    first = watched.events[0]["time"]
    for event in watched.events:
        words = describe(event)
        if words:
            rows.append(f"| {event['time'] - first:.0f} | {words} |")
    return rows


def describe(event: dict[str, Any]) -> str:
    """Returns two cells that say what an event was; empty for those left out."""
    kind = event["event"]
    if kind == "scaling":
        size = event.get("num_workers")
        what = event["action"] + (f" to {size}" if size else "")
        return f"{what} ({event['code']}) | {event['reason']}"
    if kind == "parked":
        return f"parked | {event['num_workers']} saved step {event['step']} and wait"
    if kind == "resized":
        before, after = event["num_workers"]
        return f"resized | {before} to {after} workers at step {event['step']}"
    if kind == "attempt_opened":
        return f"attempt {event['attempt']} | from step {event['start']}"
    return ""


def impact_rows(watched: Watched) -> list[str]:
    """Returns the impact of the first growth, as it was assessed before it."""
    told = next(e for e in watched.of("scaling") if e["action"] == "grow")
    impact = told["impact"]
    rows = ["| of growing from 1 to 2 | before | after |", "|---|---|---|"]

    def row(name: str, before: Any, after: Any) -> None:
        rows.append(f"| {name} | {before} | {after} |")

    def shares(side: str) -> str:
        split = impact[f"shares_{side}"]
        return f"{split['least']} to {split['most']} of {split['denominator']}"

    row("noise shares a rank", shares("before"), shares("after"))
    row("noise multiplier, epsilon", "the plan's", "the plan's")
    row(
        "seconds for the steps that are left",
        f"{impact['time_before_s']:.0f}",
        f"{impact['time_after_s']:.0f}",
    )
    row(
        "node-hours",
        f"{impact['node_hours_before']:.3f}",
        f"{impact['node_hours_after']:.3f}",
    )
    row("regions", *(", ".join(impact[f"regions_{s}"]) for s in ("before", "after")))
    return rows


def main() -> int:
    """Runs both and writes the card; 1 when a target is missed."""
    args = cards.options()
    load = cards.machine.load()
    with tempfile.TemporaryDirectory(prefix="pft-el-") as place:
        stage = Path(place)
        os.environ |= {"HOME": place, "PFT_HOME": str(stage / "home")}
        elastic = run_elastic(stage, quick=args.quick)
        fixed = run_fixed(stage, quick=args.quick)
        card = make_card(elastic, fixed, load)
    card.quick = args.quick
    return 0 if card.write(args.out) else 1


def make_card(elastic: Watched, fixed: Watched, load: str) -> cards.Card:
    """Returns the card of both runs."""
    notes, report = elastic.read("operator.json"), elastic.read("report.json")
    other = fixed.read("report.json")
    moved = [event["num_workers"] for event in elastic.of("resized")]
    out = sum(after > before for before, after in moved)
    again = notes["num_steps_charged"] - notes["num_steps_in_model"]
    waits = pauses(elastic)
    measured = [
        "`jobs/elastic.yaml` on a real autoscaling Ray cluster of this machine (Ray's "
        "own autoscaler, nodes that are processes). The policy adds a worker; later a "
        f"notice of {NOTICE_S} s is given for one of the two nodes. Beside it the same "
        "job with two workers throughout.",
        "",
        "## Course of the elastic run",
        "",
        *timeline(elastic),
        "",
        "## Impact, as assessed before",
        "",
        *impact_rows(elastic),
        "",
        "## Figures",
    ]
    figures = [
        cards.Figure("scale-outs during the run", out, at_least=1),
        cards.Figure("scale-ins during the run", len(moved) - out, at_least=1),
        cards.Figure("steps made again for planned resizes", again, at_most=0),
        cards.Figure("attempts", notes["attempts"], at_most=1),
        cards.Figure(
            "epsilon less that of the fixed run",
            report["epsilon"] - other["epsilon"],
            at_least=0,
            at_most=0,
        ),
        cards.Figure("epsilon", report["epsilon"]),
        cards.Figure("pause of a resize, median", statistics.median(waits), "s"),
        cards.Figure("longest pause", max(waits), "s"),
        cards.Figure("minutes of the elastic run", notes["timings_s"]["total"] / 60),
        cards.Figure(
            "minutes of the fixed run",
            fixed.read("operator.json")["timings_s"]["total"] / 60,
        ),
    ]
    return cards.Card(
        "elastic",
        "A run that grows and shrinks",
        "elastic",
        "\n".join(measured),
        figures,
        notes=[
            f"released accuracy {report['utility']['private']:.3f} elastic, "
            f"{other['utility']['private']:.3f} fixed: one run each, other keys.",
        ],
        details={"pauses_s": waits, "resizes": moved},
        load=load,
    )


if __name__ == "__main__":
    sys.exit(main())
