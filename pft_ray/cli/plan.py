"""``pft plan``: prices a job, or plain numbers, before anything runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.cli.adaptive import quantile_fields, quantile_rows
from pft_ray.cli.elastic_plan import elastic_fields, elastic_lines
from pft_ray.cli.filter_plan import filter_fields, priced_words
from pft_ray.cli.options import JsonOption, LedgerOption, SetOption
from pft_ray.cli.owners import mode_fields, mode_lines
from pft_ray.cli.plan_blocks import block_fields, block_rows
from pft_ray.errors import InputError

_DELTA = 1e-5


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="Job file to price.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Declared number of units n.")
    ] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Sample rate q.")] = None,
    batch_size: Annotated[
        float | None, typer.Option(help="Expected batch size q*n, in place of q.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise over clip norm, sigma.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Target, in place of the noise multiplier.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Planned steps T.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="Below 1/n; default 1e-5.")
    ] = None,
    fault_reserve: Annotated[
        int | None, typer.Option(help="Extra steps for faults; default 0.")
    ] = None,
    set_: SetOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Price a job file, or plain numbers. Reads no data and runs nothing.

    With JOB the other numbers come from the file; change them with --set. Without it
    give --size, --steps, --sample-rate or --batch-size, and --noise-multiplier (to
    get epsilon) or --epsilon (to get the noise multiplier).
    """
    numbers = {
        "--size": size,
        "--sample-rate": sample_rate,
        "--batch-size": batch_size,
        "--noise-multiplier": noise_multiplier,
        "--epsilon": epsilon,
        "--steps": steps,
        "--delta": delta,
        "--fault-reserve": fault_reserve,
    }
    given = [name for name, value in numbers.items() if value is not None]
    if job is not None:
        if given:
            raise InputError(
                f"A job file and {', '.join(given)} are given together.",
                "Give the job file alone and change it with --set.",
            )
        result = _price_job(job, set_ or [], ledger)
    else:
        if set_ or ledger is not None:
            raise InputError(
                f"{'--set' if set_ else '--ledger'} is given without a job file.",
                "Name the job file, or leave it out.",
            )
        result = _price_numbers(numbers)
    if as_json:
        render.print_json(result)
    else:
        _show(result)


def _price_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """The calculator: no file, no reserve unless given."""
    from dataclasses import replace

    from pft_ray.accounting.calibration import calibrate_noise_multiplier
    from pft_ray.accounting.plan import Phase, Plan

    _check_numbers(numbers)
    sigma, target = numbers["--noise-multiplier"], numbers["--epsilon"]
    rate, size = numbers["--sample-rate"], numbers["--size"]
    priced = Plan(
        unit="record",
        size=size,
        sample_rate=rate if rate is not None else numbers["--batch-size"] / size,
        noise_multiplier=sigma or 1.0,
        phases=(Phase("all", numbers["--steps"], "all", 1.0),),
        fault_reserve=numbers["--fault-reserve"] or 0,
        delta=_DELTA if numbers["--delta"] is None else numbers["--delta"],
        target_epsilon=target,
    )
    if sigma is None:
        sigma = calibrate_noise_multiplier(
            target_epsilon=target,
            delta=priced.delta,
            sample_rate=priced.sample_rate,
            num_steps=priced.num_steps_max,
        )
        priced = replace(priced, noise_multiplier=sigma)
    return _result(priced) | (_reserve_price(priced) if priced.fault_reserve else {})


def _check_numbers(numbers: dict[str, Any]) -> None:
    if numbers["--size"] is None or numbers["--steps"] is None:
        raise InputError(
            "Neither a job file nor --size and --steps are given.",
            "Run `pft plan JOB.yaml`, or give --size, --steps, --sample-rate or "
            "--batch-size, and --noise-multiplier or --epsilon.",
        )
    for first, second in (
        ("--sample-rate", "--batch-size"),
        ("--noise-multiplier", "--epsilon"),
    ):
        if (numbers[first] is None) == (numbers[second] is None):
            found = "Neither" if numbers[first] is None else "Both"
            raise InputError(
                f"{found} of {first} and {second} are given.", "Give exactly one."
            )
    for name, low, high in (
        ("--size", 1, 2**40),
        ("--steps", 1, 2**40),
        ("--fault-reserve", 0, 2**40),
        ("--batch-size", 1e-300, numbers["--size"]),
        ("--sample-rate", 1e-300, 1.0),
        ("--noise-multiplier", 0.01, 1e6),
        ("--epsilon", 1e-300, 1e6),
        ("--delta", 1e-300, 1.0),
    ):
        value = numbers[name]
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} is {value}.", f"Give {low:g} to {high:g}.")


def _result(plan_value: Any, pld: float | None = None) -> dict[str, Any]:
    from pft_ray.accounting.accountants import epsilon

    event, delta = plan_value.event, plan_value.delta
    pld = epsilon(event, delta) if pld is None else pld
    rdp = epsilon(event, delta, accountant="rdp")
    gdp = epsilon(event, delta, accountant="gdp")
    return {
        "unit": plan_value.unit,
        "relation": "add_remove",
        "relation_domain": plan_value.relation_domain,
        "size": plan_value.size,
        "sample_rate": plan_value.sample_rate,
        "expected_batch_size": plan_value.expected_batch_size,
        "noise_multiplier": plan_value.noise_multiplier,
        "num_steps_planned": plan_value.num_steps,
        "fault_reserve": plan_value.fault_reserve,
        "num_steps_max": plan_value.num_steps_max,
        "delta": delta,
        "target_epsilon": plan_value.target_epsilon,
        "epsilon": pld,
        "epsilon_by_accountant": {"pld": pld, "rdp": rdp},
        **_user_level(plan_value),
        "gdp_approximation": gdp if math.isfinite(gdp) else None,
    }


def _user_level(plan_value: Any) -> dict[str, Any]:
    """What the plan says of users; nothing when the unit is the record."""
    from dataclasses import asdict

    return {"user": asdict(plan_value.user)} if plan_value.user is not None else {}


def _compared(built: Any) -> dict[str, Any]:
    """Both ways to hide users at the job's budget, and why one is taken."""
    from pft_ray.accounting.user_levels import price_user_levels, reason

    plan_value, privacy = built.plan, built.job.privacy
    if plan_value.user is None:
        return {}
    result: dict[str, Any] = {"column": built.job.data.user}
    prices = price_user_levels(
        plan_value.user,
        num_users=plan_value.size,
        target_epsilon=privacy.epsilon or built.epsilon,
        delta=plan_value.delta,
        sample_rate=plan_value.sample_rate,
        num_steps=plan_value.num_steps_max,
    )
    asked = privacy.user_level or "uls"
    result["compared"] = [price.to_dict() for price in prices]
    result["reason"] = reason(prices, plan_value.user.kind, asked)
    return {"user_level": result}


def _price_job(job: Path, overrides: list[str], ledger: str | None) -> dict[str, Any]:
    from pft_ray.config import build_job, load_job

    spec = load_job(job, overrides)
    built = build_job(spec, job.resolve().parent)
    result = {"job": spec.name} | _result(built.plan, built.epsilon)
    evaluation = built.plan.evaluation
    if evaluation is not None:
        result["evaluation"] = {
            "looks": list(evaluation.looks),
            "spare_looks": evaluation.num_spare_looks,
            "sigma": evaluation.sigma,
            "epsilon": evaluation.epsilon,
            "delta": evaluation.delta,
        }
    result["phases"] = [
        {"name": p.name, "steps": p.num_steps, "clip_norm": p.clip_norm}
        | quantile_fields(p, built.plan)
        for p in built.plan.phases
    ]
    if built.shares:
        result |= filter_fields(built)
    else:
        result |= _reserve_price(built.plan) | _compared(built)
    result |= mode_fields(built) | elastic_fields(built)
    result["num_shares"] = built.plan.num_shares
    result["plan_digest"] = built.plan.digest
    result["blocks"] = block_fields(built, ledger)
    return result


def _reserve_price(plan_value: Any) -> dict[str, Any]:
    """What the fault reserve costs in noise, at the plan's epsilon."""
    from pft_ray.accounting.curves import price_of_reserve

    price = price_of_reserve(plan_value)
    return {
        "reserve_price": {
            "with_reserve": price.with_reserve,
            "without_reserve": price.without_reserve,
            "relative": price.extra_noise,
        }
    }


def _show(result: dict[str, Any]) -> None:
    by = result["epsilon_by_accountant"]
    rows: list[tuple[str, Any]] = [
        ("epsilon", f"{result['epsilon']:.4f}  ({priced_words(result, by['rdp'])})"),
        ("delta", f"{result['delta']:g}"),
        (
            "unit",
            f"{_unit_words(result)}, add/remove, {result['relation_domain']} list",
        ),
        *_user_rows(result),
        *mode_lines(result),
        ("noise multiplier", f"{result['noise_multiplier']:.6g}"),
        (
            "sample rate",
            f"{result['sample_rate']:.6g}  (expected batch "
            f"{result['expected_batch_size']:.6g} of {_drawn(result)})",
        ),
        (
            "steps",
            f"{result['num_steps_planned']} planned + {result['fault_reserve']} "
            f"reserve = T_max {result['num_steps_max']}",
        ),
        *elastic_lines(result),
    ]
    rows.extend(quantile_rows(result))
    price = result.get("reserve_price")
    if price:
        rows.append(
            (
                "reserve price",
                f"noise multiplier {price['relative']:+.1%} against no reserve",
            )
        )
    evaluation = result.get("evaluation")
    if evaluation:
        rows.append(
            (
                "evaluation",
                f"looks after steps {evaluation['looks']} and "
                f"{evaluation['spare_looks']} spare, sigma {evaluation['sigma']:.4g}, "
                f"epsilon {evaluation['epsilon']:g}",
            )
        )
    for block in result.get("blocks", []):
        rows.extend(block_rows(block))
    render.print_facts(rows)
    gdp = result["gdp_approximation"]
    if gdp is not None:
        render.console().print(
            f"GDP approximation {gdp:.4f}: shown for comparison, never used as a "
            "guarantee."
        )


def _drawn(result: dict[str, Any]) -> str:
    """What is drawn: units, or with els the records of users."""
    user = result.get("user")
    if user is None:
        return str(result["size"])
    if user["kind"] == "els":
        return f"{user['num_records']} records"
    return f"{result['size']} users"


def _unit_words(result: dict[str, Any]) -> str:
    level = result.get("user_level")
    return f"user (by `{level['column']}`)" if level else str(result["unit"])


def _user_rows(result: dict[str, Any]) -> list[tuple[str, Any]]:
    level = result.get("user_level")
    if level is None:
        return []
    user = result["user"]
    return [
        (
            "users",
            f"{result['size']} with {user['num_records']} records, at most "
            f"{user['max_records_per_user']} each",
        ),
        ("user level", level["reason"]),
    ]
