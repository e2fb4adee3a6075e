"""Rows of the report's page that a run on filter blocks has otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.assurance.wording import round_up

if TYPE_CHECKING:
    from pft_ray.assurance.report import BlockLine


def filter_row(line: BlockLine) -> list[str]:
    """A filter block's row: what other runs used depends on private outputs."""
    return [
        f"{line.name} (filter, order {line.order})",
        line.role,
        f"{round_up(line.run_epsilon, 4)}, {round_up(line.run_delta)}",
        "not told",
        "not told",
        f"{line.epsilon:.4g}, {round_up(line.delta)}",
    ]


def accountant_rows(accountants: dict[str, float | None]) -> list[list[object]]:
    """Training epsilon by PLD and RDP; of a filter run at its order alone."""
    pld, rdp = accountants["pld"], accountants["rdp"] or 0.0
    if pld is None:
        return [["training ε at T_max (at the block's order)", round_up(rdp, 5)]]
    return [
        ["training ε at T_max (PLD)", round_up(pld, 5)],
        ["the same by RDP", round_up(rdp, 5)],
    ]
