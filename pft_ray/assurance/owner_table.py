"""The table of owners on a report's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.assurance.markup import table, tag
from pft_ray.assurance.wording import round_up

if TYPE_CHECKING:
    from pft_ray.assurance.markup import Markup

_HEADS = ["owner", "units n", "ε", "ε against owners", "rate q", "clip norm C"]
_HEADS += ["account"]


def owner_table(report: dict[str, Any]) -> list[Markup]:
    """Returns the table and its note; nothing when the plan has no owners."""
    if "owners" not in report:
        return []
    rows: list[list[object]] = []
    for owner in report["owners"]:
        against = owner["epsilon_against_colluders"]
        rows.append(
            [
                owner["name"],
                owner["size"],
                round_up(owner["epsilon"], 4),
                "–" if against is None else round_up(against, 4),
                f"{owner['sample_rate']:.6g}",
                ", ".join(f"{norm:.6g}" for norm in owner["clip_norms"]),
                owner["block"],
            ]
        )
    return [
        table("Owners", _HEADS, rows, wide=True),
        tag("p", report["owners_note"]),
    ]
