"""What a report says when workers are not one mechanism with one epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.accounting.owner_calibration import owner_rows
from pft_ray.assurance.wording import owners_note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.accounting.plan import Plan


def mode_fields(
    plan: Plan, workers: int, num_colluding: int, accounts: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what a unit of each owner may lose, or how many workers are independent.

    Args:
        plan: The run's plan.
        workers: Declared number of workers.
        num_colluding: Owners that put together what they know.
        accounts: The block of each owner, by the owner's name.

    Returns:
        Nothing when the plan has one mechanism with one epsilon.
    """
    missing: dict[str, Any] = {}
    if plan.tolerate_missing:
        missing = {"tolerate_missing": plan.tolerate_missing}
    if plan.independent_workers > 1:
        return {"independent_workers": plan.independent_workers} | missing
    owners = plan.owners
    if owners is None:
        return {}
    rows = owner_rows(plan, num_workers=workers, num_colluding=num_colluding)
    for row in rows:
        row["block"] = accounts[row["name"]]
    note = owners_note(plan, num_colluding)
    return {"owners": rows, "owners_note": note} | missing
