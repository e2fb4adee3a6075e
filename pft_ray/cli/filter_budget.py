"""``pft budget`` on blocks of mode filter: purposes, moves, runs beside their block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.opening import open_ledger
from pft_ray.cli.options import JsonOption, LedgerOption
from pft_ray.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.ledger import BlockStatus, Ledger, RunStatus

_UNITS = 1 << 40
PurposeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="PATH=PART of the training block's rho, mode filter; may be repeated."
    ),
]


def mode_override(mode: str | None) -> list[str]:
    """Returns the job's setting that makes it price as the mode does.

    Raises:
        InputError: There is no such mode.
    """
    if mode is None:
        return []
    if mode not in ("plan", "filter"):
        raise InputError(f"--mode is {mode!r}.", "Give plan or filter.")
    return [f"privacy.accounting={mode}"]


def parse_purposes(items: Sequence[str]) -> dict[str, float]:
    """Reads ``PATH=PART`` items.

    Raises:
        InputError: An item is none, or a path is named twice.
    """
    parts: dict[str, float] = {}
    for item in items:
        path, equals, number = item.partition("=")
        try:
            part = float(number)
        except ValueError:
            equals = ""
            part = 0.0
        if not equals or not 0 < part <= 1 or path in parts:
            raise InputError(
                f"--purpose is {item!r}.",
                "Give each path once with a part above 0 and up to 1: training=0.8.",
            )
        parts[path] = part
    return parts


def created_words(block: dict[str, Any]) -> str:
    """Returns what was made of a filter block, in a sentence."""
    made = "created" if block["created"] else "was there already"
    return (
        f"Block {block['name']}: {made}, mode filter, epsilon {block['epsilon']:g}, "
        f"delta {block['delta']:g}, order {block['order']}, rho {block['rho']:.6g}; "
        f"room for {block['runs_left']} runs of this job."
    )


def set_words(result: dict[str, Any], mode: str | None) -> list[str]:
    """Returns what the job file has to say to fit the blocks."""
    words = [f"Set {key}: {value} in the job." for key, value in result["set"].items()]
    if mode == "filter":
        words.append("The job needs privacy.accounting: filter.")
    return words


def used_parts(row: dict[str, Any]) -> tuple[float, float]:
    """Returns which part of a block was used, and used or reserved."""
    rho = row.get("filter")
    if rho:
        spent: float = rho["spent_fraction"]
        return spent, spent + rho["reserved_fraction"]
    whole = row["epsilon"]
    return row["used_epsilon"] / whole, row["reserved_epsilon"] / whole


def left_words(row: dict[str, Any]) -> str:
    """Returns what is left of a block: epsilon, or a part of rho."""
    rho = row["filter"]
    if not rho:
        return f"{row['remaining_epsilon']:g}"
    return f"{rho['remaining_rho_units'] / rho['rho_units']:.1%} of rho"


def filter_rows(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the facts of a filter block: spent rho over its rho, by purpose."""
    rho = row["filter"]
    whole, held = rho["rho_units"], rho["reserved_rho_units"] / _UNITS
    rows = [
        ("epsilon, delta", f"{row['epsilon']:g}, {row['delta']:g} of all its runs"),
        ("mode", f"filter at order {rho['order']}"),
        (
            "rho",
            f"spent {rho['spent_rho_units'] / _UNITS:.6g} / {rho['rho']:.6g} "
            f"({rho['spent_fraction']:.1%}), held by runs "
            f"{held:.6g} ({rho['reserved_fraction']:.1%})",
        ),
    ]
    rows += [
        (
            f"  {item['name']}",
            f"{item['rho_units'] / whole:.1%} of rho: spent "
            f"{item['spent_rho_units'] / _UNITS:.6g}, held "
            f"{item['reserved_rho_units'] / _UNITS:.6g}, left "
            f"{item['remaining_rho_units'] / _UNITS:.6g}",
        )
        for item in rho["purposes"]
    ]
    return rows


def with_runs(ledger: Ledger, blocks: Sequence[BlockStatus]) -> list[dict[str, Any]]:
    """Returns blocks as JSON, each with its runs: their epsilon beside the block's."""
    runs = ledger.runs()
    return [
        status.to_dict()
        | {"runs": [run_row(run, status) for run in runs if _holds(run, status)]}
        for status in blocks
    ]


def _holds(run: RunStatus, block: BlockStatus) -> bool:
    """Whether a run holds or used a part of a block."""
    from pft_ray.ledger.records import EMPTY_STATUSES

    return block.name in run.blocks and run.status not in EMPTY_STATUSES


def run_row(run: RunStatus, block: BlockStatus) -> dict[str, Any]:
    """Returns a run's whole reservation on a block beside the block's budget."""
    from pft_ray.ledger.filter_status import share_epsilons

    if block.filter is not None:
        shares = [share for share in run.shares if share.block == block.name]
        orders = {block.name: (block.filter.order, block.delta)}
        epsilon, delta = share_epsilons(shares, orders)[block.name], block.delta
    else:
        envelopes = [e for e in run.envelopes if e.block == block.name]
        epsilon = sum(envelope.epsilon for envelope in envelopes)
        delta = sum(envelope.delta for envelope in envelopes)
    return {
        "run_id": run.run_id,
        "status": run.status,
        "together_with": [other for other in run.group if other != run.run_id],
        "epsilon": epsilon,
        "delta": delta,
        "block_epsilon": block.epsilon,
        "block_delta": block.delta,
    }


def rho_left(block: BlockStatus) -> int:
    """Returns the rho that nobody holds of a filter block, in units of 2**-40."""
    assert block.filter is not None
    return block.filter.remaining_rho_units


def show_runs(row: dict[str, Any]) -> None:
    """Prints the runs of a block with both epsilons side by side."""
    if row["runs"]:
        render.print_table(
            ["run", "status", "run epsilon", "block epsilon"],
            [
                [
                    run["run_id"],
                    run["status"],
                    f"{run['epsilon']:.6g}"
                    + (" (together)" if run["together_with"] else ""),
                    f"{run['block_epsilon']:g}",
                ]
                for run in row["runs"]
            ],
        )


def move(
    block: Annotated[str, typer.Argument(metavar="BLOCK", help="A filter block.")],
    source: Annotated[str, typer.Option("--from", help="Purpose that gives.")],
    target: Annotated[str, typer.Option("--to", help="Purpose that gets; may be new.")],
    fraction: Annotated[
        float | None, typer.Option(help="Part of the block's whole rho.")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="An amount of rho.")] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move rho that is neither spent nor reserved to another purpose.

    Purposes are paths such as training, training/epoch-2 or tuning; unassigned is what
    no purpose has. Blocks of mode plan have none: their envelopes never move.
    """
    from pft_ray.ledger.filters import exact_amount, units_of_rho

    if (fraction is None) == (rho is None):
        raise InputError(
            "Give one of --fraction and --rho.", "For example --fraction 0.1."
        )
    opened = open_ledger(ledger)
    status = opened.block_status(block)
    if rho is not None:
        units = units_of_rho(rho)
    else:
        whole = status.filter.rho_units if status.filter is not None else 1
        units = int(exact_amount(fraction, "--fraction") * whole)
    opened.filters.move(block, source, target, units)
    row = opened.block_status(block).to_dict()
    if as_json:
        render.print_json({"block": block, "moved_rho_units": units} | row["filter"])
        return
    render.console().print(
        f"Block {block}: rho {units / _UNITS:.6g} moved from {source} to {target}.",
        markup=False,
    )
