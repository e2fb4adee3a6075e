"""Rosters that may be short: noise shares that are whole without t of V.

Units and shares are cut for V parties, however many are there: a party that is absent
takes its share and its units with it, and the normaliser stays. With owners each share
is raised to 1/(V - t) of the variance, so that any V - t of them carry all of it.
Independent workers have the whole noise each and need no more.

Who is absent is decided before shares are drawn, when the roster of an attempt is
fixed. A party that is lost later voids its step, whatever t is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pft_ray.accounting.events import check_count_or_zero, store
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan


def check_tolerance(plan: Plan) -> None:
    """Refuses a plan that tolerates absences where none can be told, or of all.

    Raises:
        PlanError: All shares may be absent, or the mechanism is ``central``: those who
            are there share out all units and all noise, and nobody is missed.
    """
    missing = check_count_or_zero(plan.tolerate_missing, "tolerate_missing")
    store(plan, tolerate_missing=missing)
    if not missing:
        return
    if plan.owners is None and plan.independent_workers == 1:
        raise PlanError(
            f"tolerate_missing is {missing} for one central mechanism.",
            "Leave it out: workers that are there share out all units and all noise, "
            "so no absence costs anything. It is for owners and independent workers.",
        )
    if missing >= plan.num_shares:
        raise PlanError(
            f"tolerate_missing is {missing} of {plan.num_shares} noise shares.",
            "Let at least one be there.",
        )


def needed_shares(plan: Plan) -> int:
    """Returns V - t: the shares that a step needs, and that carry the whole noise."""
    return plan.num_shares - plan.tolerate_missing


def num_parties(plan: Plan, num_ranks: int) -> int:
    """Returns for how many ranks units and shares are cut: V, or those there are."""
    return plan.num_shares if plan.tolerate_missing else num_ranks


def noise_inflation(plan: Plan) -> float:
    """Returns the noise of a full roster over the plan's: sqrt(V / (V - t)), or 1."""
    if plan.owners is None:
        return 1.0
    return math.sqrt(plan.num_shares / needed_shares(plan))
