"""``pft budget reserve``, ``queue`` and ``leave``: reservations and who waits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_ray.cli import examples, render
from pft_ray.cli.opening import open_ledger
from pft_ray.cli.options import JobArgument, JsonOption, LedgerOption, SetOption
from pft_ray.errors import InputError

if TYPE_CHECKING:
    from pft_ray.ledger import WaitingRun

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")

WaitOption = Annotated[
    bool,
    typer.Option("--wait", help="Wait in the queue until it is the run's turn."),
]


def seconds(text: str) -> float:
    """Returns the seconds of a duration such as ``90``, ``45s``, ``30m`` or ``2h``.

    Raises:
        InputError: It is none, or not above zero.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    value = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if value <= 0:
        raise InputError(
            f"--expires is {text!r}.",
            "Give a time above zero, such as 90s, 30m, 2h or 1d.",
        )
    return value


class WaitLine:
    """What is shown while a run waits: one line whenever something changed."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._last = ""

    def __call__(self, row: WaitingRun) -> None:
        """Shows the run's row of the queue on stderr."""
        words = wait_words(row)
        if self._enabled and words != self._last:
            out = render.console(stderr=True)
            out.print(f"{words}. Ctrl-C leaves the queue.", markup=False)
            self._last = words


def wait_words(row: WaitingRun) -> str:
    """Says where a waiting run stands and what it waits for."""
    return (
        f"{row.run_id} waits: place {row.place}, {row.num_ahead} ahead, "
        f"{_waits_for(row.to_dict())}"
    )


def reserve(
    job: JobArgument,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Give it back when no step was paid for so long: 30m, 2h, 1d.",
        ),
    ] = None,
    wait: WaitOption = False,
    together: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="JOB",
            help="Another job, declared with the first: both cost their joint price. "
            "Repeatable.",
        ),
    ] = None,
    ledger: LedgerOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reserve what one run of a job needs; pft train then continues that run.

    With --expires the reservation goes back when nothing was charged to it in that
    time, counted by whoever watches the ledger: a coordinator or a waiting run.
    """
    expires_s = None if expires is None else seconds(expires)
    if together:
        _reserve_together([job, *together], (expires, wait), ledger, set_, as_json)
        return
    from pft_ray.cluster.reservations import reserve_job

    result = reserve_job(
        job,
        expires_s=expires_s,
        wait=wait,
        ledger=ledger,
        overrides=set_,
        on_wait=WaitLine(enabled=not as_json),
    )
    if as_json:
        render.print_json(result)
        return
    out = render.console()
    out.print(f"Run {result['run_id']}: {result['status']}.", markup=False)
    for block in result["blocks"]:
        taken = f"epsilon {block['epsilon']:g}" if "epsilon" in block else None
        taken = taken or f"rho {block['rho']:.6g} for {block['purpose']}"
        out.print(
            f"Block {block['name']}: {taken} reserved, "
            f"epsilon {block['epsilon_left']:g} left.",
            markup=False,
        )
    out.print(f"Continue it with: pft train {job}", markup=False)


def _reserve_together(
    jobs: list[Path],
    alone: tuple[str | None, bool],
    ledger: str | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    if any(alone):
        raise InputError(
            "--together is given with --expires or --wait.",
            "Runs that are declared together are reserved now and for good.",
        )
    from pft_ray.cluster.joint_runs import reserve_together

    result = reserve_together(jobs, ledger=ledger, overrides=overrides)
    if as_json:
        render.print_json(result)
        return
    out = render.console()
    for run in result["runs"]:
        out.print(
            f"Run {run['run_id']}: reserved; epsilon {run['epsilon']:.4g} by itself. "
            f"Continue it with: pft train {run['job']}",
            markup=False,
        )
    for block in result["blocks"]:
        out.print(
            f"Block {block['name']}: epsilon {block['epsilon']:g} for all of them, "
            f"{block['epsilon_left']:g} left.",
            markup=False,
        )


def queue(
    order: Annotated[
        str | None,
        typer.Option(help="Set the admission order: fcfs or dpf."),
    ] = None,
    dpf_n: Annotated[
        int | None,
        typer.Option(help="Arrivals that unlock a block's whole budget, with dpf."),
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who waits for budget, or set the order in which runs are admitted.

    fcfs: first come, first served. dpf: the smallest dominant share of a block goes
    first, and every run that arrives unlocks 1/N of each block that it asks for.
    """
    if order == "dpf" and dpf_n is None:
        raise InputError(
            "--order dpf is given without --dpf-n.",
            "Give the arrivals that unlock a block, for example --dpf-n 10.",
        )
    if dpf_n is not None and order is None:
        raise InputError("--dpf-n is given without --order.", "Give --order dpf, too.")
    with open_ledger(ledger) as opened:
        if order is not None:
            opened.queue.set_order(order, dpf_n or 0)
        now = opened.queue.order()
        rows = [row.to_dict() for row in opened.queue.waiting()]
    if as_json:
        render.print_json({"order": now.kind, "dpf_n": now.dpf_n, "waiting": rows})
        return
    words = f"{now.kind}, N {now.dpf_n}" if now.dpf_n else now.kind
    render.console().print(f"Admission order: {words}", markup=False)
    if not rows:
        render.console().print("Nobody waits.")
        return
    render.print_table(
        ["place", "run", "dominant share", "waits for"],
        [
            [
                row["place"],
                row["run_id"],
                f"{row['dominant_share']:.4g}",
                _waits_for(row),
            ]
            for row in rows
        ],
    )


def _waits_for(row: dict[str, Any]) -> str:
    """Says what a waiting run waits for."""
    if not row["is_possible"]:
        return "nothing that can come: its block was used up"
    lack = row["waits_for"]
    if lack is not None:
        return f"{lack['part']} {lack['missing']:.4g} of block {lack['block']}"
    if row["num_ahead"]:
        return "runs before it"
    return "its admission"


def leave(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run that waits.")],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a waiting run out of the queue for good."""
    with open_ledger(ledger) as opened:
        opened.queue.leave(run)
        num_waiting = len(opened.queue.waiting())
    if as_json:
        render.print_json({"run_id": run, "num_waiting": num_waiting})
        return
    words = f"Run {run} left the queue; {num_waiting} wait."
    render.console().print(words, markup=False)


def add_commands(app: typer.Typer) -> None:
    """Adds the verbs to ``pft budget``."""
    app.command(epilog=examples.RESERVE)(reserve)
    app.command(epilog=examples.QUEUE)(queue)
    app.command(epilog=examples.LEAVE)(leave)
