"""How long the command line takes in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pieces
from cards import Card, Figure, options

RUNS = 5
NUMBERS = ["plan", "--size", "60000", "--batch-size", "256", "--steps", "2344"]
SIGMA = ["--set", "privacy.epsilon=null", "--set", "privacy.noise_multiplier=1.7"]
# name, arguments, most seconds
COMMANDS = (
    ("pft --help", ["--help"], 0.5),
    ("pft plan, numbers, sigma given", [*NUMBERS, "--noise-multiplier", "1"], 3.0),
    ("pft plan, numbers, calibrated", [*NUMBERS, "--epsilon", "3"], 6.0),
    ("pft plan quickstart.yaml, sigma given", ["plan", str(pieces.JOB), *SIGMA], 3.0),
    ("pft plan quickstart.yaml, calibrated", ["plan", str(pieces.JOB)], 6.0),
)


def wall_s(arguments: list[str], home: Path) -> float:
    """Runs ``pft`` in a new process and returns its wall time."""
    pft = Path(sys.executable).with_name("pft")
    environment = os.environ | {"HOME": str(home), "PFT_HOME": str(home / "pft")}
    start = time.perf_counter()
    subprocess.run([pft, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    given = options()
    runs = 1 if given.quick else RUNS
    card = Card(
        "plan",
        "The command line, from a fresh process to its end",
        "plan",
        f"Wall time of a new process, median of {runs}, an empty home; files are in "
        "the system's cache after the first. Sigma given: one price by PLD, one by "
        "RDP. Calibrated: sigma is searched for the target epsilon. With a job file "
        "the noise of the evaluation is calibrated in either case, and the price of "
        "the fault reserve is computed too.",
        quick=given.quick,
    )
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        times: dict[str, list[float]] = {name: [] for name, _, _ in COMMANDS}
        for _ in range(runs):
            for name, arguments, _ in COMMANDS:
                times[name].append(wall_s(arguments, Path(folder)))
    for name, _, limit in COMMANDS:
        middle = float(np.median(times[name]))
        card.figures.append(Figure(name, middle, "s", at_most=limit))
    card.details = {"seconds": times}
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
