"""The cluster that a job's file describes: started for a run, or checked against it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pft_ray.cluster.capacity import live_nodes
from pft_ray.cluster.elastic_settings import (
    check_regions,
    cluster_file,
    elastic_settings,
)
from pft_ray.cluster.nodes import autoscaling_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pft_ray.config import BuiltJob


def check_scaling(built: BuiltJob) -> None:
    """Reads what a job says of nodes and sizes, so that what is wrong is said early.

    Raises:
        InputError: A file cannot be read.
        ConfigError: The cluster file or the regions are wrong.
        ScalingError: Prices, limits or the policy's name are wrong.
    """
    cluster_file(built)
    if built.job.cluster.elastic is not None:
        elastic_settings(built, "check")


@contextlib.contextmanager
def run_nodes(built: BuiltJob, address: str | None) -> Iterator[str | None]:
    """Starts the job's cluster file when no address is given.

    Yields:
        The address to connect to; None for a local Ray.

    Raises:
        InputError: The file is of a cluster that a run does not start.
        ConfigError: The file or its regions are wrong.
        ScalingError: Prices or limits are wrong.
        PlacementError: The head did not come up.
    """
    check_scaling(built)
    file = cluster_file(built)
    if address is not None or file is None:
        yield address
        return
    with autoscaling_nodes(file.path) as started:
        yield started


def check_live_regions(built: BuiltJob) -> None:
    """Refuses regions that no node of the cluster has, where no file says more.

    Raises:
        ConfigError: Names the region and those that are there.
    """
    cluster = built.job.cluster
    if cluster.regions is None or cluster.file is not None:
        return
    known = {node.region for node in live_nodes() if node.region}
    check_regions(cluster.regions, known, "the cluster")
