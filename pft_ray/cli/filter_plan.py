"""``pft plan`` for jobs on filter blocks: priced at one order, asks for shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.config import BuiltJob
    from pft_ray.ledger import BlockStatus, RhoShare


def filter_fields(built: BuiltJob) -> dict[str, Any]:
    """Returns what a filter job is priced at, in place of what PLD says.

    The reserve's price is the noise against the same epsilon for T steps only.
    """
    from pft_ray.accounting.filter_calibration import scale_at_order
    from pft_ray.config.filters import training_events

    plan = built.plan
    order = built.orders[built.job.training_block]
    sigma = plan.noise_multiplier
    without = sigma
    if plan.fault_reserve:
        make_event = training_events(plan, num_steps=plan.num_steps)
        without = scale_at_order(make_event, built.epsilon, plan.delta, order)
    without = min(without, sigma)
    return {
        "accounting": "filter",
        "order": order,
        "epsilon": built.epsilon,
        "epsilon_by_accountant": {"pld": None, "rdp": built.epsilon},
        "gdp_approximation": None,
        "reserve_price": {
            "with_reserve": sigma,
            "without_reserve": without,
            "relative": sigma / without - 1,
        },
    }


def priced_words(result: dict[str, Any], rdp: float) -> str:
    """Returns how the plan's epsilon was computed."""
    if result.get("accounting") == "filter":
        return f"reserved whole at order {result['order']}, T_max steps"
    return f"PLD at T_max; RDP {rdp:.4f}"


def share_row(
    built: BuiltJob, share: RhoShare, known: Mapping[str, BlockStatus]
) -> dict[str, Any]:
    """Returns what a share asks of its block and what its purpose has left."""
    from pft_ray.ledger.filter_status import share_epsilons

    plan, order = built.plan, built.orders[share.block]
    delta = plan.delta
    if share.role == "evaluation" and plan.evaluation is not None:
        delta = plan.evaluation.delta
    epsilon = share_epsilons([share], {share.block: (order, delta)})[share.block]
    row: dict[str, Any] = {
        "name": share.block,
        "purpose": share.purpose,
        "mode": "filter",
        "order": order,
        "run_epsilon": epsilon,
        "run_delta": delta,
        "run_rho": share.rho,
        "fits": None,
    }
    status = known.get(share.block)
    if status is None:
        return row
    if status.filter is None:
        return row | {"fits": False, "problem": "the block has mode plan"}
    if status.filter.order != order:
        return row | {"fits": False, "problem": f"its order is {status.filter.order}"}
    left = {p.name: p.remaining_rho_units for p in status.filter.purposes}
    units = left.get(share.purpose, 0)
    return row | {
        "block_epsilon": status.epsilon,
        "rho_left_now": units / 2**40,
        "rho_left_after": (units - share.rho_units) / 2**40,
        "fits": share.rho_units <= units,
        "problem": None if share.purpose in left else "it has no such purpose",
    }


def share_words(block: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of a filter block: the run's epsilon beside the block's."""
    asks = (
        f"{block['purpose']} asks rho {block['run_rho']:.6g} (epsilon "
        f"{block['run_epsilon']:.6g} at order {block['order']}); "
    )
    name = f"block {block['name']}"
    if block["fits"] is None:
        return [(name, asks + "not created yet: pft budget create JOB")]
    if block.get("problem"):
        return [(name, f"{asks}{block['problem']}: it does NOT fit")]
    left = f"{block['rho_left_now']:.6g} left now"
    if not block["fits"]:
        return [(name, f"{asks}{left}: it does NOT fit")]
    after = f"{left}, {block['rho_left_after']:.6g} after"
    return [(name, f"{asks}{after}; the block's epsilon is {block['block_epsilon']:g}")]
