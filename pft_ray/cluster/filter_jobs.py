"""Jobs on filter blocks: the blocks' orders, and what a report says of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.accountants import epsilon as epsilon_of
from pft_ray.accounting.curves import epsilon_curve
from pft_ray.accounting.filter_calibration import curve_at_order
from pft_ray.assurance.report import BlockLine
from pft_ray.errors import PlanError
from pft_ray.ledger.filter_status import share_epsilons

if TYPE_CHECKING:
    from pft_ray.config import BuiltJob
    from pft_ray.ledger import Ledger


def check_orders(built: BuiltJob, ledger: Ledger) -> None:
    """Refuses a job that is priced at another order than its filter blocks have.

    Raises:
        PlanError: Names the key and the block's order.
    """
    known = {status.name: status for status in ledger.blocks()}
    for name, order in built.orders.items():
        status = known.get(name)
        if status is None or status.filter is None or status.filter.order == order:
            continue
        key = "order" if name == built.job.training_block else "evaluation_order"
        raise PlanError(
            f"The job is priced at order {order}, block {name!r} counts at "
            f"{status.filter.order}.",
            f"Set privacy.filter.{key}: {status.filter.order} in the job.",
            {"block": name, "order": status.filter.order},
        )


def by_accountant(built: BuiltJob) -> dict[str, float | None]:
    """Returns the training epsilon by accountant; of a filter run at its order only."""
    if built.shares:
        return {"pld": None, "rdp": built.epsilon}
    plan = built.plan
    rdp = epsilon_of(plan.event, plan.delta, accountant="rdp")
    return {"pld": built.epsilon, "rdp": rdp}


def curve_of(built: BuiltJob) -> list[tuple[int, float]]:
    """Returns at most 20 (steps, epsilon) pairs for display, as the job is priced."""
    if built.shares:
        return curve_at_order(built.plan, built.orders[built.job.training_block])
    return epsilon_curve(built.plan)


def filter_lines(built: BuiltJob, ledger: Ledger) -> tuple[BlockLine, ...]:
    """Returns the lines of a filter run: whole reservations, nothing of other runs.

    What a block has left depends on how far other runs went, and is not told.
    """
    found = {share.block: ledger.block_status(share.block) for share in built.shares}
    orders = {name: (built.orders[name], s.delta) for name, s in found.items()}
    epsilons = share_epsilons(built.shares, orders)
    return tuple(
        BlockLine(
            name=share.block,
            role=share.role,
            epsilon=found[share.block].epsilon,
            delta=found[share.block].delta,
            run_epsilon=epsilons[share.block],
            run_delta=found[share.block].delta,
            epsilon_reserved=epsilons[share.block],
            overlapping=tuple(n for n in found[share.block].overlapping if n in found),
            mode="filter",
            order=built.orders[share.block],
        )
        for share in built.shares
    )
