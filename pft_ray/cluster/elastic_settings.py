"""What the scaling side of a run is told: plain values, no key and no record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pft_ray.cluster.cluster_file import REGION_LABEL, ClusterFile, load_cluster_file
from pft_ray.errors import ConfigError
from pft_ray.scaling import Limits, PriceTable, load_policy, load_prices

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.config import BuiltJob


@dataclass(frozen=True)
class NodeKind:
    """A type of node that the cluster may add, as this run counts it.

    Attributes:
        name: Its name in the cluster file.
        num_slots: Workers of the run that one holds.
        max_nodes: How many there may be.
        region: Its region label; empty when it has none.
        is_spot: Whether it may be taken away.
    """

    name: str
    num_slots: int
    max_nodes: int
    region: str
    is_spot: bool


@dataclass(frozen=True)
class ElasticSettings:
    """What the run's resizer needs to know; Ray stores it.

    Attributes:
        run_id: The run.
        start_workers: Size to start with.
        cpus_per_worker: CPUs of each worker.
        limits: What no decision may break; its deadline is a duration from the start.
        phase_steps: Planned steps of each phase.
        node_start_s: Time that a new node is taken to need.
        placement_timeout_s: How long to wait for nodes that hold the minimum.
        kinds: Types of nodes that the cluster may add.
        max_nodes: Nodes beside the head that it may have; None when not known.
        prices: By type, region and market; None when no job names any.
        policy: Name of a policy to ask instead; None for the built-in one.
    """

    run_id: str
    start_workers: int
    cpus_per_worker: float
    limits: Limits
    phase_steps: tuple[int, ...]
    node_start_s: float
    placement_timeout_s: float
    kinds: tuple[NodeKind, ...] = ()
    max_nodes: int | None = None
    prices: PriceTable | None = None
    policy: str | None = None

    def price(self, node_type: str, region: str, *, is_spot: bool) -> float | None:
        """Returns what a node costs an hour; None when nobody said."""
        if self.prices is None:
            return None
        return self.prices.price(node_type, region, spot=is_spot)


def elastic_settings(built: BuiltJob, run_id: str) -> ElasticSettings:
    """Returns what a job says about its sizes.

    Raises:
        InputError: A file of prices or nodes cannot be read.
        ConfigError: A region is named that no node type has.
        ScalingError: Limits or prices contradict one another, or the policy cannot be
            loaded.
    """
    cluster, plan = built.job.cluster, built.plan
    elastic = cluster.elastic
    assert elastic is not None
    file = cluster_file(built)
    kinds = () if file is None else _kinds(file, cluster.cpus_per_worker)
    prices = None
    if elastic.prices is not None:
        prices = load_prices(built.base_dir / elastic.prices)
    if elastic.policy is not None:
        load_policy(elastic.policy)  # what is misspelt is said before a run starts
    hours = elastic.deadline_hours
    limits = Limits(
        min_workers=elastic.min_workers,
        max_workers=elastic.max_workers,
        needed_workers=len(plan.owners.members) if plan.owners else 1,
        num_shares=plan.num_shares,
        allowed_regions=frozenset(cluster.regions) if cluster.regions else None,
        deadline_s=None if hours is None else 3600 * hours,
        max_price_per_hour=elastic.max_price_per_hour,
        max_slowdown=elastic.max_slowdown,
        resize_s=elastic.resize_s,
        min_interval_s=elastic.min_interval_s,
        min_saving=elastic.min_saving,
    )
    return ElasticSettings(
        run_id=run_id,
        start_workers=cluster.workers,
        cpus_per_worker=cluster.cpus_per_worker,
        limits=limits,
        phase_steps=tuple(phase.num_steps for phase in plan.phases),
        node_start_s=elastic.node_start_s,
        placement_timeout_s=cluster.placement_timeout_s,
        kinds=kinds,
        max_nodes=None if file is None else file.max_nodes,
        prices=prices,
        policy=elastic.policy,
    )


def cluster_file(built: BuiltJob) -> ClusterFile | None:
    """Returns the job's cluster file, with its regions checked; None without one.

    Raises:
        InputError: It cannot be read.
        ConfigError: It is wrong, or has no node type in a region that the job names.
    """
    place = built.job.cluster.file
    if place is None:
        return None
    file = load_cluster_file(cluster_path(built.base_dir, place))
    known = {t.region for t in file.node_types if t.region and not t.is_head}
    check_regions(built.job.cluster.regions, known, file.path.name)
    return file


def cluster_path(base_dir: Path, place: str) -> Path:
    """Returns where a job's cluster file is; relative paths start from the job."""
    return (base_dir / place).resolve()


def check_regions(regions: tuple[str, ...] | None, known: set[str], where: str) -> None:
    """Refuses a region label that nothing has: a misspelt one would match no node.

    Raises:
        ConfigError: Names it, and those that are there.
    """
    unknown = sorted(set(regions or ()) - known)
    if unknown:
        there = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"cluster.regions names {', '.join(unknown)}; {where} has {there}.",
            "Name regions by the node label ray.io/availability-region.",
        )


def _kinds(file: ClusterFile, cpus_per_worker: float) -> tuple[NodeKind, ...]:
    return tuple(
        NodeKind(
            kind.name,
            kind.slots(cpus_per_worker),
            kind.max_nodes,
            kind.region or "",
            kind.market == "spot",
        )
        for kind in file.node_types
        if not kind.is_head and kind.slots(cpus_per_worker) > 0
    )


def region_selector(regions: tuple[str, ...] | None) -> dict[str, str] | None:
    """Returns the label selector that keeps workers in the regions."""
    if not regions:
        return None
    return {REGION_LABEL: f"in({','.join(regions)})"}
