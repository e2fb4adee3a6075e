"""Joins a Ray cluster or starts a local one, with settings that suit private runs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any

import ray
from ray._private import worker

from pft_ray.cluster.actors import NAMESPACE
from pft_ray.cluster.placement import check_reachable
from pft_ray.errors import InputError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ray reads these when its processes start. Its memory monitor kills workers by their
# memory use, which can depend on data; a lost worker must be seen within a second.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_PORT_TIMEOUT_S = 20.0


@contextlib.contextmanager
def ray_cluster(
    address: str | None, *, num_cpus: float, working_dir: str | None = None
) -> Iterator[bool]:
    """Connects to Ray for the time of a run.

    Args:
        address: A cluster's address, or None to start a local Ray that ends with
            the context. An existing connection of this process is used as it is.
        num_cpus: CPUs that a local Ray offers.
        working_dir: Folder that workers must be able to import from; None for the
            installed package.

    Yields:
        Whether the cluster was started here.

    Raises:
        InputError: No cluster answers at ``address``.
    """
    if ray.is_initialized():
        yield False
        return
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    temp_dir: str | None = None
    if address is None:
        # A short path: Ray's sockets below it must stay under 107 bytes.
        temp_dir = tempfile.mkdtemp(prefix="pft-")
        options |= {
            "address": "local",
            "num_cpus": max(1, math.ceil(num_cpus)),
            "include_dashboard": False,
            "_temp_dir": temp_dir,
        }
    else:
        check_reachable(address)
        options["address"] = address
    if working_dir is not None:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": working_dir}}
    _hush_ray()
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"No Ray cluster could be used at {address or 'this machine'}: "
            f"{str(error).splitlines()[0][:200]}",
            "Check the address, or leave it out to start a local Ray.",
        ) from None
    try:
        yield address is None
    finally:
        ray.shutdown()
        if temp_dir is not None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _hush_ray() -> None:
    """Stops Ray from printing errors of the cluster, such as a node's death.

    Ray prints them to standard output, where a program may read our JSON, with the
    last lines of its own log, and does so whatever ``log_to_driver`` says. It has no
    other use for what is replaced while that is off.
    """
    worker.print_to_stdstream = _say_nothing


def _say_nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what prints the errors."""


def check_placement(
    workers: int, cpus_per_worker: float, timeout_s: float, *, num_missing: int = 0
) -> int:
    """Waits for nodes that hold the workers, and returns how many to start.

    Args:
        workers: Number of workers.
        cpus_per_worker: CPUs of each.
        timeout_s: How long to wait for all of them.
        num_missing: How many may be absent when the time is over.

    Raises:
        PlacementError: Says how many fit and what to change.
    """
    deadline = time.monotonic() + timeout_s
    fitting = 0
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus = [node["Resources"].get("CPU", 0.0) for node in nodes]
        fitting = sum(int(cpu / cpus_per_worker + 1e-9) for cpu in cpus)
        if fitting >= workers:
            return workers
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    if fitting >= workers - num_missing:
        return fitting
    raise PlacementError(
        f"The job asks for {workers - num_missing} workers of {cpus_per_worker:g} "
        f"CPUs; the cluster has {sum(cpus):g} CPUs on {len(nodes)} nodes and holds "
        f"{fitting}.",
        "Lower cluster.workers or cluster.cpus_per_worker, or add nodes.",
    )
