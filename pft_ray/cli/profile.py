"""``pft profile``: how fast a job would run here, and at which setting it should."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pft_ray.cli import render
from pft_ray.cli.options import JobArgument, JsonOption, SetOption

if TYPE_CHECKING:
    from pft_ray.cluster.profiling import JobProfile, Measured
    from pft_ray.config import BuiltJob
    from pft_ray.scaling.vertical import Setting, VerticalPlan

_MIB = 1 << 20
_FEW = 8


def profile(
    job: JobArgument, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Find the fastest setting of a job's workers on this machine.

    Made-up records are measured with several threads, micro-batches and gradient
    checkpointing. No data is read, nothing is charged, and the guarantee is the same
    at every setting.
    """
    from pft_ray.cli.extras import require_train

    require_train("profile")
    saved = render.quiet_stdout()
    try:
        from pft_ray.cluster.placement import local_cpus
        from pft_ray.cluster.profiling import profile_job
        from pft_ray.config import build_job, load_job
        from pft_ray.scaling.vertical import plan_vertical

        built = build_job(load_job(job, set_ or []), job.resolve().parent)
        cluster = built.job.cluster
        cpus = local_cpus()
        if cluster.address is None:  # the workers share this machine
            cpus = max(1, cpus // cluster.workers)
        found = profile_job(built, cpus, _tell)
        limit = built.job.training.memory_limit_gib
        limit_bytes = None if limit is None else int(limit * (1 << 30))
        plan = plan_vertical(found.of_job(), cpus, limit_bytes)
    finally:
        render.restore_stdout(saved)
    result = _result(built, found, plan)
    result["cpus_per_worker_at_most"] = cpus
    if as_json:
        render.print_json(result)
    else:
        _show(result)


def _tell(row: Measured) -> None:
    words = f"measured {row.phase}, {row.setting}: "
    words += f"{1e3 * row.probe.seconds_per_record:.2f} ms a record"
    render.console(stderr=True).print(words, markup=False)


def _result(built: BuiltJob, found: JobProfile, plan: VerticalPlan) -> dict[str, Any]:
    return {
        "job": built.job.name,
        "current": asdict(found.current),
        "measurements": [
            {"phase": row.phase}
            | asdict(row.setting)
            | {
                "seconds_per_record": row.probe.seconds_per_record,
                "peak_bytes": row.peak_bytes,
            }
            for row in found.measured
        ],
        "plan": asdict(plan) | {"set": _set_lines(built, found.current, plan)},
        "phases": _steps(built, found, plan.setting),
        "notes": list(found.notes),
    }


def _set_lines(built: BuiltJob, current: Setting, plan: VerticalPlan) -> list[str]:
    cpus: float = plan.threads
    if plan.threads == current.threads:  # half a CPU stays half a CPU
        cpus = built.job.cluster.cpus_per_worker
    again = str(plan.gradient_checkpointing).lower()
    return [
        f"training.max_micro_batch={plan.max_micro_batch}",
        f"model.gradient_checkpointing={again}",
        f"cluster.cpus_per_worker={cpus:g}",
    ]


def _steps(
    built: BuiltJob, found: JobProfile, setting: Setting
) -> list[dict[str, Any]]:
    """Returns what a step takes in each phase at a setting, by number of workers."""
    from pft_ray.training.probe import expected_records, step_time

    records = expected_records(built.plan)
    rows = []
    for name, probe in found.probes(setting).items():
        serial_s, parallel_s = step_time(probe, records, built.plan.num_shares)
        rows.append(
            {
                "phase": name,
                "num_parameters": probe.num_parameters,
                "serial_s": serial_s,
                "parallel_s": parallel_s,
                "seconds_to_keep_a_record": probe.seconds_to_keep,
                "seconds_a_step": [
                    {"workers": n, "seconds": serial_s + parallel_s / n}
                    for n in _sizes(built.job.cluster.most_workers)
                ],
            }
        )
    return rows


def _sizes(workers: int) -> list[int]:
    if workers <= _FEW:
        return list(range(1, workers + 1))
    powers = {2**power for power in range(workers.bit_length())}
    return sorted(n for n in powers | {workers} if n <= workers)


def _show(result: dict[str, Any]) -> None:
    plan, out = result["plan"], render.console()
    render.print_table(
        ["phase", "threads", "micro-batch", "checkpointing", "ms a record", "MiB"],
        (_row(measurement) for measurement in result["measurements"]),
    )
    for note in result["notes"]:
        out.print(f"note: {note}", markup=False)
    out.print()
    out.print(plan["reason"], markup=False)
    speedup = plan["speedup"]
    if speedup is not None and speedup > 1:
        out.print(f"A record takes {1 / speedup:.0%} of its time as the job stands.")
    for line in plan["set"]:
        out.print(f"  --set {line}", markup=False)
    out.print()
    rows = [
        [phase["phase"], each["workers"], f"{each['seconds']:.3g}"]
        for phase in result["phases"]
        for each in phase["seconds_a_step"]
    ]
    render.print_table(["phase", "workers", "s a step"], rows)
    out.print(
        "MiB: a worker without Ray's own share and the raw text. Seconds: without the "
        "network, and once the frozen layers' values are kept. Another micro-batch or "
        "number of CPUs does not change the guarantee; another max_micro_batch starts "
        "a new run."
    )


def _row(measurement: dict[str, Any]) -> list[Any]:
    peak = measurement["peak_bytes"]
    return [
        measurement["phase"],
        measurement["threads"],
        measurement["micro_batch"],
        "on" if measurement["gradient_checkpointing"] else "off",
        f"{1e3 * measurement['seconds_per_record']:.3g}",
        "-" if peak is None else f"{peak / _MIB:.0f}",
    ]
