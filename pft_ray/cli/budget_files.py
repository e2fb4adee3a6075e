"""``pft budget export`` and ``import-check``: a ledger's rows as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pft_ray.cli import render
from pft_ray.cli.options import JsonOption, LedgerOption
from pft_ray.errors import InputError


def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="New file to write.")],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all rows of the ledger, with their hashes, to a file (JSON lines).

    The file is for the operator: it tells how many steps each run was charged. Keep
    it elsewhere: it proves later that the ledger lost nothing.
    """
    from pft_ray.ledger.exports import write_export
    from pft_ray.ledger.home import ledger_location

    position = write_export(ledger_location(ledger), out)
    if as_json:
        render.print_json({"file": str(out), **position._asdict()})
        return
    render.console().print(
        f"{position.sequence} rows, root {position.root[:16]}…, in {out}", markup=False
    )


def import_check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File that export wrote.")
    ],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an exported file by itself and against the ledger. Changes nothing.

    Exit code 4 when a row was altered, when the ledger lost rows that the file holds,
    or when they are of different ledgers.
    """
    from pft_ray.ledger.exports import check_export
    from pft_ray.ledger.home import ledger_location

    location = ledger_location(ledger)
    is_there = "://" in location or Path(location).exists()
    if ledger is not None and not is_there:
        raise InputError(f"There is no ledger at {location}.", "Give another path.")
    found = check_export(file, location if is_there else None)
    if as_json:
        render.print_json(found.to_dict())
        return
    out = render.console()
    out.print(
        f"The export holds {found.num_entries} rows and {len(found.runs)} runs, all "
        "in order.",
        markup=False,
    )
    words = {
        "same": "The ledger has the same rows.",
        "ledger has more": f"The ledger has {found.num_entries_ledger} rows and begins "
        "with these.",
        "no ledger": "There is no ledger here to compare it with.",
    }
    out.print(words[found.relation])
