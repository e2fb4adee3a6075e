"""Reads a Ray cluster file, and says what nodes may be added to its cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pft_ray.errors import ConfigError, InputError

LOCAL_PROVIDER = "fake_multinode"
HEAD_TYPE = "ray.head.default"
REGION_LABEL = "ray.io/availability-region"
MARKET_LABEL = "ray.io/market-type"
_KEYS = {
    "cluster_name",
    "provider",
    "max_workers",
    "upscaling_speed",
    "idle_timeout_minutes",
    "available_node_types",
    "head_node_type",
}
_TYPE_KEYS = {
    "resources",
    "node_config",
    "labels",
    "min_workers",
    "max_workers",
    "idle_timeout_s",
    "priority",
}


class Labelled:
    """Something with Ray's node labels."""

    labels: dict[str, str]

    @property
    def region(self) -> str | None:
        """Its region label."""
        return self.labels.get(REGION_LABEL)

    @property
    def market(self) -> str | None:
        """Its market label: spot or on-demand."""
        return self.labels.get(MARKET_LABEL)


@dataclass(frozen=True)
class NodeType(Labelled):
    """A kind of node that a cluster may have.

    Attributes:
        name: Its name in the file.
        cpus: CPUs that one node offers.
        memory_bytes: Memory that it offers; None when the file leaves it to Ray.
        labels: Its labels.
        min_nodes: How many are kept in any case.
        max_nodes: How many there may be.
        is_head: Whether it is the head, of which there is one.
    """

    name: str
    cpus: float
    memory_bytes: int | None
    labels: dict[str, str]
    min_nodes: int
    max_nodes: int
    is_head: bool

    def slots(self, cpus_per_worker: float) -> int:
        """Returns how many workers of that many CPUs one node holds."""
        return int(self.cpus / cpus_per_worker + 1e-9)


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster file says.

    Attributes:
        path: The file.
        document: Its content.
        node_types: Its node types, the head's first.
        max_nodes: How many nodes there may be beside the head.
        idle_timeout_s: After how long an idle node is taken away.
    """

    path: Path
    document: dict[str, Any]
    node_types: tuple[NodeType, ...]
    max_nodes: int
    idle_timeout_s: float

    @property
    def provider(self) -> str:
        """The provider's type, such as aws or local."""
        return str(self.document["provider"]["type"])

    @property
    def starts_here(self) -> bool:
        """Whether its nodes are processes of this machine, started with a run."""
        return self.provider == LOCAL_PROVIDER


def load_cluster_file(path: str | Path) -> ClusterFile:
    """Reads a Ray cluster file of any provider.

    Raises:
        InputError: There is no such file.
        ConfigError: It is no cluster file, or its numbers contradict one another.
    """
    place = Path(path)
    document = _read(place)
    provider = document.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        raise ConfigError(
            f"{place.name} names no provider.",
            "A Ray cluster file has a section `provider` with a `type`.",
        )
    types = _node_types(place, document)
    room = sum(kind.max_nodes for kind in types if not kind.is_head)
    room += len(provider.get("worker_ips") or ())
    max_nodes = _count(place, "max_workers", document.get("max_workers", room))
    wanted = sum(kind.min_nodes for kind in types)
    wanted += _count(place, "min_workers", document.get("min_workers", 0))
    if wanted > max_nodes:
        raise ConfigError(
            f"{place.name}: min_workers keep {wanted} workers in any case, and "
            f"max_workers allows {max_nodes}.",
            "Raise max_workers, or lower min_workers.",
            {"min_workers": wanted, "max_workers": max_nodes},
        )
    idle_minutes = _number(
        place, "idle_timeout_minutes", document.get("idle_timeout_minutes", 5)
    )
    return ClusterFile(place, document, types, max_nodes, 60 * idle_minutes)


def load_local_nodes(path: str | Path) -> ClusterFile:
    """Reads a cluster file whose nodes are to be started on this machine.

    Raises:
        InputError: There is no such file, or its nodes are not processes of this
            machine.
        ConfigError: It has a key that such a cluster does not know, or a wrong value.
    """
    file = load_cluster_file(path)
    if not file.starts_here:
        raise InputError(
            f"{file.path.name} describes a cluster of provider {file.provider}, which "
            "a run does not start.",
            f"Start it with `ray up {file.path.name}` and name it with --address.",
        )
    _known(file.path, file.document, _KEYS, "")
    for name, fields in file.document["available_node_types"].items():
        _known(file.path, fields, _TYPE_KEYS, f"available_node_types.{name}.")
        if "memory" in (fields.get("resources") or {}):
            # Ray's provider of such nodes fails on it, at every launch.
            raise ConfigError(
                f"{file.path.name}: available_node_types.{name}.resources.memory "
                "cannot be set where nodes share one machine.",
                "Leave it out: each node then states the memory of the machine.",
            )
    _known(file.path, file.document["provider"], {"type"}, "provider.")
    if file.document.get("head_node_type") != HEAD_TYPE:
        raise ConfigError(
            f"{file.path.name}: the head of a cluster on one machine is of type "
            f"{HEAD_TYPE}.",
            f"Call the head's node type {HEAD_TYPE}.",
        )
    return file


def node_types(path: str | Path) -> tuple[NodeType, ...]:
    """Returns the node types of which nodes may still be added: all but the head's.

    Raises:
        InputError: As :func:`load_cluster_file`.
    """
    file = load_cluster_file(path)
    return tuple(kind for kind in file.node_types if not kind.is_head)


def _read(place: Path) -> dict[str, Any]:
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(
            f"The cluster file {place} cannot be read: {reason}.",
            "Name a Ray cluster file, such as clusters/autoscaling-local.yaml.",
        ) from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(
            f"{place.name} is not YAML{where}.", "Correct the file."
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{place.name} is empty or a list.", "Correct the file.")
    return document


def _node_types(place: Path, document: dict[str, Any]) -> tuple[NodeType, ...]:
    if document["provider"]["type"] == "local":
        # Ray makes up one node type for a fixed list of machines.
        return ()
    declared = document.get("available_node_types", {})
    head = document.get("head_node_type")
    if not isinstance(declared, dict):
        raise ConfigError(
            f"{place.name}: available_node_types is not a mapping.",
            "Give each node type a name, resources, min_workers and max_workers.",
        )
    if declared and head not in declared:
        raise ConfigError(
            f"{place.name}: head_node_type is {head!r}, which is not among "
            f"{', '.join(map(str, declared))}.",
            "Name one of available_node_types.",
        )
    limit = document.get("max_workers")
    types = [
        _node_type(place, str(name), fields, is_head=name == head, limit=limit)
        for name, fields in declared.items()
    ]
    return tuple(sorted(types, key=lambda kind: not kind.is_head))


def _node_type(
    place: Path, name: str, fields: Any, *, is_head: bool, limit: Any
) -> NodeType:
    where = f"available_node_types.{name}"
    if not isinstance(fields, dict):
        raise ConfigError(f"{place.name}: {where} is not a mapping.", "Correct it.")
    resources = fields.get("resources") or {}
    labels = fields.get("labels") or {}
    if not isinstance(resources, dict) or not isinstance(labels, dict):
        raise ConfigError(
            f"{place.name}: resources and labels of {where} are mappings.",
            "Write them as `name: value` lines.",
        )
    least = _count(place, f"{where}.min_workers", fields.get("min_workers", 0))
    default_most = 0 if is_head else limit
    most = _count(
        place, f"{where}.max_workers", fields.get("max_workers", default_most)
    )
    if least > most:
        raise ConfigError(
            f"{place.name}: {where} has min_workers {least} above max_workers {most}.",
            "Raise max_workers or lower min_workers.",
            {"min_workers": least, "max_workers": most},
        )
    memory = resources.get("memory")
    return NodeType(
        name=name,
        cpus=_number(place, f"{where}.resources.CPU", resources.get("CPU", 0)),
        memory_bytes=None
        if memory is None
        else _count(place, f"{where}.resources.memory", memory),
        labels={str(key): str(value) for key, value in labels.items()},
        min_nodes=least,
        max_nodes=most,
        is_head=is_head,
    )


def _count(place: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"{place.name}: {key} is {value!r}.", "It is a whole number of 0 or more."
        )
    return value


def _number(place: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(
            f"{place.name}: {key} is {value!r}.", "It is a number of 0 or more."
        )
    return float(value)


def _known(place: Path, fields: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in fields if key not in known)
    if unknown:
        raise ConfigError(
            f"{place.name}: {where}{unknown[0]} is not known to a cluster on one "
            "machine.",
            f"Known here: {', '.join(sorted(known))}.",
        )
