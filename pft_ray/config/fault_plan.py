"""Checkpoint interval and fault reserve of a job that declares failure rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.accounting.defaults import default_fault_reserve, default_interval
from pft_ray.scaling.faults import FaultModel, FaultPlan, choose_faults

if TYPE_CHECKING:
    from pft_ray.config.sections import JobSpec


def fault_plan(job: JobSpec) -> FaultPlan | None:
    """Returns what suits the declared failure rates; None when nothing is chosen.

    Nothing but the job file is read: the choice is made before data are. An interval
    or a reserve that the job gives is kept, and the other one is chosen for it.

    Raises:
        ScalingError: A number is out of range.
    """
    section = job.cluster.faults
    interval, reserve = job.training.checkpoint_interval, job.privacy.fault_reserve
    if section is None or (interval is not None and reserve is not None):
        return None
    most = section.max_reserve
    if reserve is not None:
        most = (reserve + 0.5) / job.num_steps  # whole steps: the half rounds nothing
    model = FaultModel(
        num_steps=job.num_steps,
        step_s=section.step_s,
        failures_per_node_hour=section.failures_per_node_hour,
        num_nodes=job.cluster.most_workers,
        checkpoint_s=section.checkpoint_s,
        grant_size=grant_size(job),
        restart_s=section.restart_s,
    )
    return choose_faults(
        model,
        max_reserve=most,
        risk=section.risk,
        max_interval=interval,
        min_interval=interval or 1,
    )


def grant_size(job: JobSpec) -> int:
    """Returns the steps that are charged ahead."""
    return job.training.grant_size or default_interval(job.num_steps)


def interval_and_reserve(job: JobSpec) -> tuple[int, int]:
    """Returns checkpoint interval and fault reserve: as given, as chosen, or default.

    Raises:
        ScalingError: As :func:`fault_plan`.
    """
    given, reserve = job.training.checkpoint_interval, job.privacy.fault_reserve
    chosen = fault_plan(job)
    if chosen is not None:
        given = given or chosen.checkpoint_interval
        reserve = chosen.fault_reserve if reserve is None else reserve
    interval = given or default_interval(job.num_steps)
    if reserve is None:
        reserve = default_fault_reserve(job.num_steps, interval, grant_size(job))
    return interval, reserve
