"""Exports: a ledger's rows as a file that can be kept elsewhere and checked.

An export is JSON lines: a header, then every row with its hash. Nothing keyed leaves
the ledger beside what the rows hold: fingerprints of units stay where they are. The
file is the operator's (mode 0600): rows tell how many steps were charged.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pft_ray.accounting.plan import canonical_json
from pft_ray.errors import InputError, LedgerBehindError, VerificationError
from pft_ray.ledger.entries import SCHEMA_VERSION, Position, bad_row, read_entry
from pft_ray.ledger.opening import ledger_source, open_for_reading
from pft_ray.ledger.run_checks import RunCheck, check_runs
from pft_ray.ledger.state import LedgerState, replay_row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pft_ray.ledger.run_checks import PriceFunction
    from pft_ray.ledger.store import Store

FORMAT = "pft-ray/ledger-export/1"
_HEADER = {"format", "ledger_id", "schema", "num_entries", "root"}
_TIMEOUT_S = 10.0

Relation = Literal["same", "ledger has more", "no ledger"]


@dataclass(frozen=True)
class ExportCheck:
    """What an export holds and how the ledger that was named stands to it.

    Attributes:
        ledger_id: The id in its first row.
        num_entries: Rows of the export.
        root: Hash of its last row.
        runs: Its runs, their prices computed anew.
        relation: ``same``, ``ledger has more`` (the export is a prefix of it) or
            ``no ledger``.
        num_entries_ledger: Rows of the ledger; 0 without one.
    """

    ledger_id: str
    num_entries: int
    root: str
    runs: tuple[RunCheck, ...]
    relation: Relation
    num_entries_ledger: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        return asdict(self)


def write_export(ledger: str | Path, path: Path) -> Position:
    """Writes all rows of a ledger, replayed and checked, to a new file.

    The file appears whole or not at all.

    Args:
        ledger: Path or URL of the ledger.
        path: The file; it must not be there yet.

    Returns:
        The position of the last row written.

    Raises:
        InputError: The file exists or cannot be written, or there is no ledger.
        VerificationError: The ledger is damaged; nothing was written.
    """
    if path.exists():
        raise InputError(f"There is a file {path} already.", "Name a new file.")
    source = ledger_source(ledger)
    temporary = path.with_name(f".{path.name}.tmp")
    with closing(open_for_reading(source, _TIMEOUT_S)) as store:
        store.begin_reading()
        state = LedgerState()
        for row in _rows(store):
            replay_row(state, row)
        try:
            _write(store, state, temporary)
            temporary.rename(path)
        except OSError as error:
            raise InputError(
                f"The file {path} cannot be written: {error.strerror}.",
                "Name a file in a folder that can be written, with space left.",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
    return state.position


def _rows(store: Store) -> Iterator[tuple[Any, ...]]:
    with closing(store.rows_from(0)) as rows:
        yield from rows


def _write(store: Store, state: LedgerState, path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    header = {
        "format": FORMAT,
        "ledger_id": state.ledger_id,
        "schema": SCHEMA_VERSION,
        "num_entries": state.sequence,
        "root": state.root,
    }
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        for row in _rows(store):
            file.write(json.dumps(read_entry(row).to_dict(), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def check_export(
    path: Path, ledger: str | Path | None, *, epsilon: PriceFunction | None = None
) -> ExportCheck:
    """Checks an export by itself and against a ledger; changes nothing.

    Args:
        path: The export.
        ledger: Path or URL of the ledger to compare with; None for none.
        epsilon: Prices (event, delta); default: the PLD accountant.

    Raises:
        InputError: The file cannot be read, is no export, or is of a newer version.
        LedgerBehindError: The export holds rows that the ledger lost.
        VerificationError: A row was altered, is missing or breaks a rule, a run costs
            more than its envelope, or the ledger is another one or has another
            history.
    """
    state, roots = _read(path)
    runs = check_runs(state, epsilon)
    if ledger is None:
        return _found(state, runs, "no ledger", 0)
    with closing(open_for_reading(ledger_source(ledger), _TIMEOUT_S)) as store:
        store.begin_reading()
        last = _compare(store, roots)
    relation: Relation = "same" if last == state.sequence else "ledger has more"
    return _found(state, runs, relation, last)


def _found(
    state: LedgerState, runs: tuple[RunCheck, ...], relation: Relation, last: int
) -> ExportCheck:
    return ExportCheck(
        state.ledger_id, state.sequence, state.root, runs, relation, last
    )


def _compare(store: Store, roots: list[str]) -> int:
    """Returns the ledger's number of rows; refuses one that is no continuation."""
    last = 0
    for row in _rows(store):
        last = row[0]
        if last > len(roots):
            continue
        if read_entry(row).hash != roots[last - 1]:
            what = "is of another ledger" if last == 1 else "has another history"
            raise VerificationError(
                f"The export {what}: row {last} differs.",
                "Compare it with the ledger that it was made from.",
                {"row": last},
            )
    if last < len(roots):
        raise LedgerBehindError(
            f"The ledger ends at row {last}, the export holds {len(roots)}: the "
            "ledger lost rows.",
            "Nothing may run on it: restore a copy that holds all of them.",
            {"row": last + 1},
        )
    return last


def _read(path: Path) -> tuple[LedgerState, list[str]]:
    """Replays an export; returns the state and the root after each row."""
    state, roots = LedgerState(), []
    try:
        with path.open(encoding="utf-8") as file:
            header = _header(path, file.readline())
            for number, line in enumerate(file, start=1):
                replay_row(state, _row(number, line))
                roots.append(state.root)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The export {path} cannot be read ({type(error).__name__}).",
            "Name a file that `pft budget export` wrote.",
        ) from error
    found = {
        "ledger_id": state.ledger_id,
        "num_entries": state.sequence,
        "root": state.root,
    }
    if not roots or any(header[name] != value for name, value in found.items()):
        raise VerificationError(
            f"The export says {header['num_entries']} rows and holds {len(roots)}, or "
            "its last row is not the one that it names.",
            "It was cut off or altered: make a new one.",
            {"row": len(roots) + 1},
        )
    return state, roots


def _header(path: Path, line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or set(header) != _HEADER:
        raise InputError(
            f"The file {path} is no export of a ledger.",
            "Name a file that `pft budget export` wrote.",
        )
    if (header["format"], header["schema"]) != (FORMAT, SCHEMA_VERSION):
        raise InputError(
            f"The export {path} is of another version: {header['format']!r}, schema "
            f"{header['schema']!r}.",
            "Upgrade pft_ray.",
        )
    return header


def _row(number: int, line: str) -> tuple[Any, ...]:
    """Returns a line as the row that a store would give."""
    try:
        data = json.loads(line)
        text = canonical_json(data["body"])
        parts = (data["kind"], data["previous"], data["hash"])
        kind, previous, digest = (str(part).encode() for part in parts)
    except (ValueError, TypeError, KeyError):
        raise bad_row(number, "of the export was altered: it is no row") from None
    return data.get("sequence"), kind, text, previous, digest
