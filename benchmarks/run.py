"""Runs all benchmarks, or those named; writes dated cards and says what was missed.

python benchmarks/run.py [quickstart|agent_mail|scaling|ledger|admission|plan ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import machine
from cards import RESULTS

HERE = Path(__file__).parent
NAMES = (
    "plan",
    "sampler",
    "ledger",
    "ledger_growth",
    "ledger_load",
    "admission",
    "clipping",
    "engine",
    "scaling",
    "scaling_sim",
    "elastic",
    "node_kills",
    "quickstart",
    "agent_mail",
    "allocation",
)


def main() -> None:
    known = ", ".join(NAMES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}")
    parser.add_argument("--quick", action="store_true", help="toy sizes, no meaning")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of cards")
    parser.add_argument(
        "--wait", type=float, default=5.0, help="minutes to wait for a quiet machine"
    )
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {known}")
    for key, value in machine.describe().items():
        print(f"{key}: {value}")
    missed = []
    for name in [n for n in NAMES if not given.names or n in given.names]:
        if not given.quick and not machine.wait_until_quiet(60 * given.wait):
            print(f"{name}: the machine is busy; the card says how much")
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(given.out)]
        command += ["--quick"] if given.quick else []
        if subprocess.run(command, check=False).returncode:
            missed.append(name)
    if missed:
        sys.exit(f"a target was missed, or it broke: {', '.join(missed)}")


if __name__ == "__main__":
    main()
