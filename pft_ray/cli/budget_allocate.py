"""``pft budget allocate``: what the next job may take of a filter block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.opening import open_ledger
from pft_ray.cli.options import JsonOption, LedgerOption, RunsOption
from pft_ray.errors import InputError


def allocate(
    block: Annotated[str, typer.Argument(metavar="BLOCK", help="A filter block.")],
    jobs_left: Annotated[
        int,
        typer.Option(help="Jobs that share what is left, the next included."),
    ],
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Earlier run, oldest first; repeatable."),
    ] = None,
    purpose: Annotated[str, typer.Option(help="Purpose that pays.")] = "training",
    boost: Annotated[
        float, typer.Option(help="How far a share moves from an even one; 1: not.")
    ] = 2.0,
    runs: RunsOption = Path("runs"),
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the next job may take, from what earlier runs released.

    A job after one without visible gain gets more, one after a gain less. Only
    reports are read: released values, which were paid for. Nothing is reserved: give
    the epsilon to the job with --set privacy.epsilon.
    """
    result = _allocate(block, purpose, (jobs_left, boost), after or [], runs, ledger)
    if as_json:
        render.print_json(result)
        return
    render.print_facts(
        [
            ("block", f"{block}, purpose {purpose}, order {result['order']}"),
            ("left", f"rho {result['rho_left']:.6g}"),
            ("next job", f"rho {result['rho']:.6g} ({result['part_of_left']:.1%})"),
            ("privacy.epsilon", f"{result['epsilon']:.6g}"),
        ]
    )


def _allocate(
    block: str,
    purpose: str,
    rule: tuple[int, float],
    after: list[str],
    runs: Path,
    ledger: str | None,
) -> dict[str, Any]:
    from pft_ray.accounting.allocation import Allocation
    from pft_ray.accounting.filters import UNITS, epsilon_of_units
    from pft_ray.assurance.observed import released_utility

    jobs_left, boost = rule
    if jobs_left < 1:
        raise InputError(f"--jobs-left is {jobs_left}.", "Give at least 1.")
    opened = open_ledger(ledger)
    status = opened.block_status(block)
    if status.filter is None:
        raise InputError(
            f"Block {block!r} has mode {status.mode}: its envelopes are fixed.",
            "Name a block of mode filter.",
            {"block": block},
        )
    known = {item.name: item for item in status.filter.purposes}
    if purpose not in known:
        raise InputError(
            f"Block {block!r} has no purpose {purpose!r}.",
            f"It has {', '.join(known)}.",
            {"block": block, "purpose": purpose},
        )
    released = [released_utility(_report(run, runs)) for run in after]
    left = known[purpose].remaining_rho_units
    units = Allocation(boost).share(left, [1] * jobs_left, released)
    order, delta = status.filter.order, status.delta
    return {
        "block": block,
        "purpose": purpose,
        "order": order,
        "rho_left": left / UNITS,
        "rho": units / UNITS,
        "rho_units": units,
        "part_of_left": units / left if left else 0.0,
        "epsilon": epsilon_of_units(units, delta, order) if units else 0.0,
        "after": [value._asdict() for value in released],
    }


def _report(run: str, runs: Path) -> dict[str, Any]:
    """Reads the report of a run given by id or path."""
    for folder in (runs / run, Path(run)):
        try:
            data = json.loads((folder / "report.json").read_bytes())
        except OSError:
            continue
        except ValueError:
            break
        if isinstance(data, dict):
            return data
    raise InputError(
        f"There is no readable report of run {run!r} in {str(runs)!r}.",
        "`pft runs` lists the runs there are; --runs names the folder they are in.",
    )
