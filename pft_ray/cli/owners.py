"""What ``pft plan`` says of owners, of independent workers and of who may be absent."""

from __future__ import annotations

from typing import Any


def mode_fields(built: Any) -> dict[str, Any]:
    """Returns what is said beside one mechanism with one epsilon; nothing for that."""
    return owner_fields(built) | sequential_fields(built) | tolerance_fields(built)


def mode_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of :func:`mode_fields`."""
    return [
        *owner_lines(result),
        *sequential_lines(result),
        *tolerance_lines(result),
    ]


def tolerance_fields(built: Any) -> dict[str, Any]:
    """Returns what rosters that may be short cost; nothing when none may."""
    from pft_ray.accounting.tolerance import noise_inflation

    plan = built.plan
    if not plan.tolerate_missing:
        return {}
    return {
        "tolerance": {
            "tolerate_missing": plan.tolerate_missing,
            "num_shares": plan.num_shares,
            "noise_inflation": noise_inflation(plan),
        }
    }


def tolerance_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the line of rosters that may be short."""
    tolerance = result.get("tolerance")
    if tolerance is None:
        return []
    extra = tolerance["noise_inflation"] - 1
    price = f"{extra:+.1%} noise when all are there" if extra else "no more noise"
    return [
        (
            "absences",
            f"{tolerance['tolerate_missing']} of {tolerance['num_shares']} workers may "
            f"be absent when a roster is fixed, the last ranks: {price}",
        )
    ]


def owner_fields(built: Any) -> dict[str, Any]:
    """Returns the owners of a job's plan; nothing when it has none."""
    from pft_ray.accounting.owner_calibration import owner_rows

    section, plan = built.job.privacy.owners, built.plan
    if section is None:
        return {}
    rows = owner_rows(
        plan,
        num_workers=built.job.cluster.workers,
        num_colluding=section.colluding,
    )
    return {
        "owners": {
            "method": section.method,
            "field": section.field,
            "colluding": section.colluding,
            "members": rows,
        }
    }


def sequential_fields(built: Any) -> dict[str, Any]:
    """Returns what independent workers cost; nothing when there are none."""
    from dataclasses import asdict

    from pft_ray.accounting.independent import price_independent

    many = built.plan.independent_workers
    if many == 1:
        return {}
    return {"sequential": {"workers": many} | asdict(price_independent(built.plan))}


def sequential_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the line of independent workers."""
    price = result.get("sequential")
    if price is None:
        return []
    return [
        (
            "sequential",
            f"{price['workers']} workers draw independently: {price['num_events']} "
            f"events; {price['extra_noise']:+.1%} noise against one mechanism, whose "
            f"noise multiplier would be {price['central_noise_multiplier']:.4g}",
        )
    ]


def owner_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a line for each owner."""
    owners = result.get("owners")
    if owners is None:
        return []
    colluding = owners["colluding"]
    who = f"{colluding} other owner{'s' * (colluding != 1)}"
    lines = [
        (
            "owners",
            f"by {owners['method']}; epsilon is that of one {result['unit']} of an "
            f"owner, first against outsiders, then against {who} with the noise "
            "shares of their workers subtracted",
        )
    ]
    for row in owners["members"]:
        against = row["epsilon_against_colluders"]
        shown = "nothing is hidden" if against is None else f"{against:.4f}"
        clips = ", ".join(f"{norm:.4g}" for norm in row["clip_norms"])
        lines.append(
            (
                f"  {row['name']}",
                f"epsilon {row['epsilon']:.4f} of {row['epsilon_declared']:g}, against "
                f"{who} {shown}; {row['size']} units at rate "
                f"{row['sample_rate']:.4g}, clip norm {clips}, noise multiplier "
                f"{row['noise_multiplier']:.4g}",
            )
        )
    return lines
