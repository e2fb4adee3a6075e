"""Whether this machine can hold a job's workers, asked before Ray is started."""

from __future__ import annotations

import os

from pft_ray.errors import PlacementError


def local_cpus() -> int:
    """Returns the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_local_placement(workers: int, cpus_per_worker: float) -> None:
    """Refuses a job that a local Ray on this machine cannot hold.

    Raises:
        PlacementError: Says how many workers fit and what to change.
    """
    cpus = local_cpus()
    fitting = int(cpus / cpus_per_worker + 1e-9)
    if fitting < workers:
        raise PlacementError(
            f"The job asks for {workers} workers of {cpus_per_worker:g} CPUs; this "
            f"machine has {cpus} CPUs and holds {fitting}.",
            "Lower cluster.workers or cluster.cpus_per_worker (fractions are allowed), "
            "or name a cluster with --address.",
            {"workers": workers, "fitting": fitting},
        )
