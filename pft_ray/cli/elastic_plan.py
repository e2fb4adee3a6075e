"""What ``pft plan`` says of sizes that change and of reserves chosen for faults."""

from __future__ import annotations

from typing import Any


def elastic_fields(built: Any) -> dict[str, Any]:
    """Returns the sizes of an elastic job and what was chosen for faults, if any."""
    return _sizes(built) | _faults(built)


def elastic_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of :func:`elastic_fields`."""
    lines = []
    sizes = result.get("elastic")
    if sizes is not None:
        least, most = sizes["min_workers"], sizes["max_workers"]
        lines.append(
            (
                "sizes",
                f"{least} to {most} workers, {sizes['num_shares']} noise shares: "
                f"{_at(sizes['shares_at_min'], least)}, "
                f"{_at(sizes['shares_at_max'], most)}; epsilon and noise are those of "
                "any size",
            )
        )
    faults = result.get("chosen_for_faults")
    if faults is not None:
        lines.append(
            (
                "chosen for faults",
                f"interval {faults['checkpoint_interval']}, reserve "
                f"{faults['fault_reserve']}; {faults['expected_failures']:.3g} "
                f"failures expected, {faults['failures_covered']} covered; risk of "
                f"more {faults['risk']:.2g}",
            )
        )
    return lines


def _sizes(built: Any) -> dict[str, Any]:
    elastic, num_shares = built.job.cluster.elastic, built.plan.num_shares
    if elastic is None:
        return {}
    least, most = elastic.min_workers, elastic.max_workers
    return {
        "elastic": {
            "min_workers": least,
            "max_workers": most,
            "start_workers": built.job.cluster.workers,
            "num_shares": num_shares,
            "shares_at_min": _shares(num_shares, least),
            "shares_at_max": _shares(num_shares, most),
        }
    }


def _faults(built: Any) -> dict[str, Any]:
    """Returns the interval and the reserve of the plan, and what they are good for."""
    from dataclasses import asdict

    from pft_ray.config.fault_plan import fault_plan

    chosen = fault_plan(built.job)
    if chosen is None:
        return {}
    plan = built.plan
    used = {
        "checkpoint_interval": plan.checkpoint_interval,
        "fault_reserve": plan.fault_reserve,
    }
    return {"chosen_for_faults": asdict(chosen) | used}


def _shares(num_shares: int, num_workers: int) -> list[int]:
    """Returns the fewest and the most shares that a rank holds."""
    return [num_shares // num_workers, -(-num_shares // num_workers)]


def _at(shares: list[int], num_workers: int) -> str:
    few, most = shares
    count = str(few) if few == most else f"{few} or {most}"
    return f"{count} a rank at {num_workers}"
