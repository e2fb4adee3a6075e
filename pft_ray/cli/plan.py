"""``pft plan``: prices a job, or plain numbers, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pft_ray.cli import render
from pft_ray.errors import InputError


def plan(
    job: Annotated[Path | None, typer.Argument(help="Job file to price.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Declared number of units n.")
    ] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Sample rate q.")] = None,
    batch_size: Annotated[
        float | None, typer.Option(help="Expected batch size, in place of q.")
    ] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="sigma")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Target, in place of the noise multiplier.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Planned steps T.")] = None,
    delta: Annotated[float, typer.Option(help="delta")] = 1e-5,
    fault_reserve: Annotated[
        int, typer.Option(help="Extra steps for faults (calculator only).")
    ] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value")
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="Ledger URL or path.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Price a job file, or plain numbers, before anything is read or run."""
    numbers = {
        "size": size,
        "sample_rate": sample_rate,
        "batch_size": batch_size,
        "noise_multiplier": noise_multiplier,
        "epsilon": epsilon,
        "steps": steps,
    }
    if job is not None:
        given = [f"--{name.replace('_', '-')}" for name, v in numbers.items() if v]
        if given:
            raise InputError(
                f"A job file and {', '.join(given)} are given together.",
                "Give the job file alone and change it with --set.",
            )
        result = _price_job(job, set_ or [], ledger)
    else:
        result = _price_numbers(numbers, delta, fault_reserve)
    if as_json:
        render.print_json(result)
    else:
        _show(result)


def _price_numbers(
    numbers: dict[str, Any], delta: float, fault_reserve: int
) -> dict[str, Any]:
    """The calculator: no file, no reserve unless given."""
    from pft_ray.accounting.calibration import calibrate_noise_multiplier
    from pft_ray.accounting.plan import Phase, Plan

    size, steps = numbers["size"], numbers["steps"]
    rate, batch = numbers["sample_rate"], numbers["batch_size"]
    sigma, target = numbers["noise_multiplier"], numbers["epsilon"]
    if size is None or steps is None:
        raise InputError(
            "Neither a job file nor --size and --steps are given.",
            "Run `pft plan JOB.yaml`, or give --size, --sample-rate, --steps and "
            "--noise-multiplier or --epsilon.",
        )
    if size < 1 or steps < 1 or fault_reserve < 0:
        raise InputError(
            f"--size {size}, --steps {steps}, --fault-reserve {fault_reserve}.",
            "Give counts of at least 1 (the reserve at least 0).",
        )
    if (rate is None) == (batch is None):
        raise InputError(
            "Exactly one of --sample-rate and --batch-size is needed.",
            "Give the sample rate q or the expected batch size q*n.",
        )
    if (sigma is None) == (target is None):
        raise InputError(
            "Exactly one of --noise-multiplier and --epsilon is needed.",
            "Give sigma to get epsilon, or epsilon to get sigma.",
        )
    rate = rate if rate is not None else batch / size
    if sigma is None:
        sigma = calibrate_noise_multiplier(
            target_epsilon=target,
            delta=delta,
            sample_rate=rate,
            num_steps=steps + fault_reserve,
        )
    plan_value = Plan(
        unit="record",
        size=size,
        sample_rate=rate,
        noise_multiplier=sigma,
        phases=(Phase("all", steps, "all", 1.0),),
        fault_reserve=fault_reserve,
        delta=delta,
        target_epsilon=target,
    )
    return _result(plan_value)


def _result(plan_value: Any, pld: float | None = None) -> dict[str, Any]:
    from pft_ray.accounting.accountants import epsilon

    pld = epsilon(plan_value.event, plan_value.delta) if pld is None else pld
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
        "delta": plan_value.delta,
        "target_epsilon": plan_value.target_epsilon,
        "epsilon": pld,
        "epsilon_by_accountant": {
            "pld": pld,
            "rdp": epsilon(plan_value.event, plan_value.delta, accountant="rdp"),
        },
        "gdp_approximation": epsilon(
            plan_value.event, plan_value.delta, accountant="gdp"
        ),
    }


def _price_job(job: Path, overrides: list[str], ledger: str | None) -> dict[str, Any]:
    from pft_ray.accounting.curves import price_of_reserve
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
        for p in built.plan.phases
    ]
    price = price_of_reserve(built.plan)
    result["reserve_price"] = {
        "with_reserve": price.with_reserve,
        "without_reserve": price.without_reserve,
        "relative": price.extra_noise,
    }
    result["num_shares"] = built.plan.num_shares
    result["plan_digest"] = built.plan.digest
    result["blocks"] = _blocks(built, ledger)
    return result


def _blocks(built: Any, ledger: str | None) -> list[dict[str, Any]]:
    """What the job asks of each block and what would be left of it."""
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location

    location = ledger_location(ledger or built.job.ledger.url, built.base_dir)
    rows = []
    known = {}
    if "://" in location or Path(location).exists():
        opened = Ledger.open(location, keys_dir=keys_dir(), create=False)
        known = {status.name: status for status in opened.blocks()}
    for envelope in built.envelopes:
        row = {
            "name": envelope.block,
            "purpose": envelope.purpose,
            "run_epsilon": envelope.epsilon,
            "run_delta": envelope.delta,
        }
        status = known.get(envelope.block)
        if status is not None:
            row["epsilon_left_now"] = status.remaining_epsilon
            row["epsilon_left_after"] = status.remaining_epsilon - envelope.epsilon
            row["fits"] = (
                status.remaining_epsilon >= envelope.epsilon
                and status.remaining_delta >= envelope.delta
            )
        else:
            row["fits"] = None
        rows.append(row)
    return rows


def _show(result: dict[str, Any]) -> None:
    by = result["epsilon_by_accountant"]
    rows: list[tuple[str, Any]] = [
        ("epsilon", f"{result['epsilon']:.4f}  (PLD at T_max; RDP {by['rdp']:.4f})"),
        ("delta", f"{result['delta']:g}"),
        ("unit", f"{result['unit']}, add/remove, {result['relation_domain']} list"),
        ("noise_multiplier", f"{result['noise_multiplier']:.6g}"),
        (
            "sample_rate",
            f"{result['sample_rate']:.6g}  (expected batch "
            f"{result['expected_batch_size']:.6g} of {result['size']})",
        ),
        (
            "steps",
            f"{result['num_steps_planned']} planned + {result['fault_reserve']} "
            f"reserve = T_max {result['num_steps_max']}",
        ),
    ]
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
        left = (
            "not created yet: pft budget create"
            if block["fits"] is None
            else f"{block['epsilon_left_now']:g} left now, "
            f"{block['epsilon_left_after']:g} after"
        )
        rows.append((f"block {block['name']}", f"{block['run_epsilon']:g}: {left}"))
    render.print_facts(rows)
    render.console().print(
        f"GDP approximation {result['gdp_approximation']:.4f}: shown for comparison, "
        "never used as a guarantee."
    )
