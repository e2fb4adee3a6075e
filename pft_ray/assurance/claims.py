"""Collects what runs claim about the ledger: checkpoints, reports, the anchor file.

A ledger that lacks a position claimed here was truncated, rolled back or replaced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pft_ray.errors import PftError, VerificationError
from pft_ray.ledger import Anchor, read_anchors
from pft_ray.training.headers import HEADER_FILE, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.ledger import Verification
    from pft_ray.ledger.run_checks import RunCheck

ANCHOR_FILE = "anchor.json"
CHECKPOINTS = "checkpoints"
_TOLERANCE = 1e-6


def collect_claims(output_dir: Path) -> list[Anchor]:
    """Returns every claim found below a folder of runs; none when it is absent."""
    anchors: list[Anchor] = []
    anchor_file = output_dir / ANCHOR_FILE
    if anchor_file.exists():
        anchors.extend(read_anchors(anchor_file))
    for path in sorted(output_dir.glob(f"*/{CHECKPOINTS}/*/*/{HEADER_FILE}")):
        try:
            header, _ = read_header(path.parent)
        except PftError:
            continue  # a damaged checkpoint claims nothing and is never resumed
        where = f"checkpoint {header.run_id}/{path.parent.name}"
        anchors.append(Anchor(header.ledger_id, header.sequence, header.root, where))
    for path in sorted(output_dir.glob("*/operator.json")):
        anchors.extend(_operator_anchor(path))
    for path in sorted(output_dir.glob("*/report.json")):
        anchors.extend(_report_anchor(path))
    return anchors


def check_reports(output_dir: Path, verification: Verification) -> int:
    """Compares every released report with what the ledger's events give.

    Args:
        output_dir: Folder of runs.
        verification: Of the ledger that the runs used.

    Returns:
        The number of reports that agree.

    Raises:
        VerificationError: A report states another epsilon or delta than the ledger's
            events give, contradicts the run's plan, or names a run that the ledger
            does not have.
    """
    known = {run.run_id: run for run in verification.runs}
    agreed = 0
    for path in sorted(output_dir.glob("*/report.json")):
        report = _load(path)
        run = known.get(str(report.get("run_id")))
        if run is None:
            raise VerificationError(
                f"report.json of {path.parent.name} names run "
                f"{str(report.get('run_id'))!r}, which the ledger does not have.",
                "Name the ledger that the run was started with.",
            )
        for name, derived in (("epsilon", run.epsilon), ("delta", run.delta)):
            if not _is_near(report.get(name), derived):
                raise VerificationError(
                    f"report.json of {path.parent.name} states {name} "
                    f"{report.get(name)}; the ledger's events give {derived:.6g}.",
                    "The report was edited or belongs to another ledger.",
                )
        for name, value in run.stated.items():
            if report.get(name) != value:
                raise VerificationError(
                    f"report.json of {path.parent.name} states {name} "
                    f"{report.get(name)!r}; the plan in the ledger has {value!r}.",
                    "The report was edited or belongs to another ledger.",
                )
        _check_owners(report, run, path.parent.name)
        agreed += 1
    return agreed


def _check_owners(report: dict[str, Any], run: RunCheck, name: str) -> None:
    """Checks that each owner's line states what the events of its account give."""
    accounts = {e.block: e for e in run.envelopes if e.owner is not None}
    rows = report.get("owners", [])
    stated = {row.get("block"): row for row in rows} if isinstance(rows, list) else {}
    for block, account in accounts.items():
        row = stated.get(block, {})
        if (
            row.get("name") != account.owner
            or not _is_near(row.get("epsilon"), account.epsilon)
            or not _is_near(row.get("delta"), account.delta)
        ):
            raise VerificationError(
                f"report.json of {name} states of owner {account.owner!r} epsilon "
                f"{row.get('epsilon')}; the events in the ledger give "
                f"{account.epsilon:.6g}.",
                "The report was edited or belongs to another ledger.",
            )


def _is_near(stated: Any, derived: float) -> bool:
    """Whether a number is the derived one, up to how another machine rounds."""
    return isinstance(stated, float) and abs(stated - derived) <= _TOLERANCE * derived


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _operator_anchor(path: Path) -> list[Anchor]:
    try:
        ledger = _load(path)["ledger"]
        return [
            Anchor(
                str(ledger["ledger_id"]),
                int(ledger["sequence"]),
                str(ledger["root"]),
                f"operator.json of {path.parent.name}",
            )
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _report_anchor(path: Path) -> list[Anchor]:
    """A report names its reservation's number, never the number of rows."""
    try:
        ledger = _load(path)["ledger"]
        return [
            Anchor(
                None,
                int(ledger["sequence"]),
                str(ledger["root"]),
                f"report.json of {path.parent.name}",
                counts="reservations",
            )
        ]
    except (KeyError, TypeError, ValueError):
        return []
