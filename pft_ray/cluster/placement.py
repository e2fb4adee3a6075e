"""Whether a job's workers can run where they are to run, asked before Ray starts."""

from __future__ import annotations

import os
import re
import socket

from pft_ray.errors import InputError, PlacementError

_HOST_AND_PORT = re.compile(r"(?:ray://)?(\[[^\]]+\]|[^:/\s]+):(\d+)")
_CONNECT_TIMEOUT_S = 5.0


def check_placement_before(
    workers: int, cpus_per_worker: float, address: str | None
) -> None:
    """Refuses within seconds what Ray would refuse after minutes, or not at all.

    Args:
        workers: Number of workers.
        cpus_per_worker: CPUs of each.
        address: Ray address, or None for a local Ray.

    Raises:
        PlacementError: This machine cannot hold the workers of a local Ray.
        InputError: Nobody listens at the address.
    """
    if address is None:
        check_local_placement(workers, cpus_per_worker)
    else:
        check_reachable(address)


def check_reachable(address: str) -> None:
    """Refuses an address of the form host:port at which nobody listens.

    Ray itself tries such an address for several minutes.

    Raises:
        InputError: Names the address and why it cannot be reached.
    """
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return
    host, port = match[1].strip("[]"), int(match[2])
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"No Ray cluster answers at {address}: {reason}.",
            "Check the address and that the cluster is up, or leave the address out "
            "to start a local Ray.",
        ) from None


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
