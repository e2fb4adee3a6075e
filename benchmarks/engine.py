"""A private step against the same step without privacy, for whole models.

python benchmarks/engine.py [--case NAME|main] [--quick] [--out FOLDER]

``--case main`` leaves out how the cost grows with tokens, batch and vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from cards import Card, Figure, options
from engine_cases import CASES, GROWTH, Case, ways_of

MEASURE = Path(__file__).parent / "engine_measure.py"
PAIRS = 15
PEERS = ("hooks", "ghost")


def run(*arguments: str) -> dict[str, object]:
    """Runs one measurement in a fresh process; returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(MEASURE), *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"fails": lines[-1][:140] if lines else f"exit {done.returncode}"}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(case: Case, way: str) -> float | None:
    """Returns how far a step drives the memory up, MiB; None when it fails."""
    found = run("memory", case.packed, way)
    return found.get("mib")  # type: ignore[return-value]


def measure(case: Case, pairs: int) -> dict[str, object]:
    """Returns time and memory ratios of every way to make the step."""
    memory = {way: peak(case, way) for way in ("plain", *ways_of(case))}
    result: dict[str, object] = {"memory_mib": memory}
    for way in ways_of(case):
        found = run("time", case.packed, way, str(pairs))
        if "fails" in found:
            result[way] = found
            continue
        seconds = np.array(found["seconds"])
        ratio = seconds[:, 0] / seconds[:, 1]
        plain, own = memory["plain"], memory[way]
        result[way] = {
            "time": float(np.median(ratio)),
            "quartiles": np.quantile(ratio, [0.25, 0.75]).tolist(),
            "seconds": np.median(seconds, axis=0).tolist(),
            "memory": own / plain if own and plain else None,
            "num_parameters": found["num_parameters"],
        }
    return result


def figures_of(case: Case, found: dict[str, object]) -> tuple[list[Figure], list[str]]:
    """Returns the case's figures, and sentences about what does not run."""
    figures, notes = [], []
    for way in ways_of(case):
        one = found[way]
        assert isinstance(one, dict)
        if "fails" in one:
            notes.append(f"{case.name}, {way}: fails: {one['fails']}")
            continue
        own = way == "own"
        for kind, limit in (("time", case.time), ("memory", case.memory)):
            if one[kind] is not None:
                figures.append(
                    Figure(
                        f"{case.name}, {kind}, {way}",
                        one[kind],
                        "x",
                        at_most=limit if own else None,
                    )
                )
        if own:
            low, high = one["quartiles"]
            private, plain = one["seconds"]
            notes.append(
                f"{case.name}: {case.shape}, {one['num_parameters']:,} trained "
                f"parameters; {private:.3f} s against {plain:.3f} s; half of the "
                f"ratios lie between {low:.3f} and {high:.3f}."
            )
    return figures, notes


def main() -> None:
    given = options(case="")
    cases = [c for c in (*CASES, *GROWTH) if given.case in ("", c.name)]
    if given.case == "main":
        cases = list(CASES)
    if not cases:
        sys.exit(f"unknown case; known: {', '.join(c.name for c in (*CASES, *GROWTH))}")
    name = "engine" + (f"-{given.case}" if given.case not in ("", "main") else "")
    card = Card(
        name,
        "Private against plain: one step of whole models",
        "engine",
        "One torch thread, random weights, random tokens, every case in fresh "
        "processes. Private: forward, backward with per-record clipping, secure noise, "
        "AdamW. Plain: forward and backward of the mean loss, the same fused AdamW. "
        "Both run on the same batches in turn in one process; the ratio is the median "
        f"of {PAIRS} pairs. Memory: peak resident memory after three steps over the "
        "one before the model was built, each way in a process of its own (weights, "
        "moments and gradients included). own-held forms no gradient to keep, however "
        "much memory there is. hooks and ghost are Opacus with the same "
        "AdamW and its own, insecure, noise.",
        quick=given.quick,
    )
    for case in cases:
        used = case.shrunk() if given.quick else case
        found = measure(used, 3 if given.quick else PAIRS)
        figures, notes = figures_of(used, found)
        card.figures += figures
        card.notes += notes
        card.details[case.name] = found
        for figure in figures:
            print(f"  {figure.name}: {figure.value:.3f} {figure.target}", flush=True)
        for note in notes:
            print(f"  {note}", flush=True)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
