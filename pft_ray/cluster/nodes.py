"""An autoscaling Ray cluster on this machine, for the time of a run.

Each node is a raylet of its own. Ray's autoscaler starts and ends them, as it would
start and end machines of a cloud. Nothing here stops another Ray of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pft_ray.cluster.cluster_file import HEAD_TYPE, ClusterFile, load_local_nodes
from pft_ray.cluster.local import RAY_ENVIRONMENT
from pft_ray.cluster.placement import check_reachable
from pft_ray.cluster.processes import TOKEN_VARIABLE, carriers, end_carriers
from pft_ray.errors import ConfigError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    import psutil

_HOST = "127.0.0.1"
# Ray looks for the head under this id.
_HEAD_ID = "f" * 51 + "00000"
_START_TIMEOUT_S = 180.0
_GUARD = Path(__file__).with_name("processes.py")
# Paths of sockets must stay under 107 bytes, and Ray appends about 70.
_TEMP_LENGTH = 24
AUTOSCALER_ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_METRIC_PORT": "0",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
}
# A node whose processes end refuses the next three questions: it is dead after 1.5 s,
# not after 15 s as by default. One that is slow, since all nodes share few cores, has
# 15 s to answer. What the user sets goes before.
HEALTH_ENVIRONMENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
# What a shell that is itself part of a Ray would hand on.
_NOT_INHERITED = ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_OVERRIDE_RESOURCES")
# What Ray's own file of this provider would fill in; the wheel comes without it.
_PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider."
    "FakeMultiNodeProvider",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "launch_multiple": True,
    "head_node_id": _HEAD_ID,
}
_EMPTY: dict[str, Any] = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{
        name: []
        for name in (
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        )
    },
}


def complete_document(file: ClusterFile, gcs_address: str) -> dict[str, Any]:
    """Returns the cluster file as Ray's autoscaler takes it.

    Args:
        file: A file whose nodes are processes of this machine.
        gcs_address: Where the head's control store listens.

    Raises:
        ConfigError: Ray's own schema refuses it.
    """
    from ray.autoscaler._private.util import validate_config

    document = {
        "cluster_name": "pft",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **file.document,
        **_EMPTY,
        "max_workers": file.max_nodes,
        "provider": _PROVIDER | {"gcs_address": gcs_address},
    }
    try:
        validate_config(document)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(_refused(file, reason), "Correct the file.") from None
    except Exception as error:
        # Ray's validator raises an error of its own package.
        if type(error).__name__ != "ValidationError":
            raise
        where = ".".join(map(str, getattr(error, "absolute_path", ())))
        reason = f"{where}: {str(error).splitlines()[0][:200]}"
        raise ConfigError(_refused(file, reason), "Correct the file.") from None
    return document


def _refused(file: ClusterFile, reason: str) -> str:
    return f"{file.path.name} is not a cluster file that Ray takes: {reason}."


class AutoscalingNodes:
    """A head and the nodes that Ray's autoscaler adds to it, on this machine.

    Used as a context manager. Every process of it carries a token in its environment,
    so exactly these are ended, whoever their parent is by then. A guard process ends
    them too when this process is killed and cannot.

    Args:
        file: What nodes there may be.
        working_dir: Folder that workers must be able to import from; None for the
            installed package.
        variables: Further environment of the nodes.

    Attributes:
        address: Where drivers connect, set once the head is up.
        folder: Its temporary folder; Ray's logs are below it.
    """

    def __init__(
        self,
        file: ClusterFile,
        *,
        working_dir: str | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.file = file
        self.address = ""
        self.folder = Path()
        self._working_dir = working_dir
        self._variables = dict(variables or {})
        self._token = secrets.token_hex(16)
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def processes(self) -> list[psutil.Process]:
        """Returns the processes of all its nodes, and no other."""
        return carriers(self._token)

    def close(self) -> None:
        """Ends its processes and removes its folder; does nothing the second time."""
        if self.folder == Path():
            return
        end_carriers(self._token)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._guard.stdin.close()
                self._guard.wait(timeout=_START_TIMEOUT_S)
        self.folder, self._guard = Path(), None

    def _start(self) -> None:
        port = _free_port()
        address = f"{_HOST}:{port}"
        document = complete_document(self.file, address)
        self.folder = Path(tempfile.mkdtemp(prefix="pft-n-", dir=_short_temp()))
        self._guard = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", str(_GUARD), self._token, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        config = self.folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        _ask_for_token()
        self._start_head(port, config)
        check_reachable(address)
        self.address = address

    def _start_head(self, port: int, config: Path) -> None:
        """Runs ``ray start``, which returns when the head answers.

        Raises:
            PlacementError: The head did not come up.
        """
        command = [
            str(_ray_program()),
            *("start", "--head", f"--port={port}", f"--node-ip-address={_HOST}"),
            f"--temp-dir={self.folder / 'ray'}",
            f"--autoscaling-config={config}",
            # Ports of a second Ray on this machine must not collide with the first's.
            f"--ray-client-server-port={_free_port()}",
            "--dashboard-agent-listen-port=0",
            *("--min-worker-port=0", "--max-worker-port=0"),
            *("--include-dashboard=false", "--disable-usage-stats"),
            *_head_options(self.file),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - Ray's program beside Python
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_START_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PlacementError(
                f"The head of the local nodes was not up after {_START_TIMEOUT_S:g} s.",
                "Free CPU and memory of this machine, or name a cluster with "
                "--address.",
            ) from None
        if done.returncode != 0:
            words = (done.stderr + done.stdout).strip().splitlines()
            raise PlacementError(
                f"`ray start` failed: {words[-1][:200] if words else 'no output'}",
                "See that Ray is installed and that this machine has memory and "
                "disk left.",
            )

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        defaults = RAY_ENVIRONMENT | HEALTH_ENVIRONMENT
        environment = defaults | inherited | AUTOSCALER_ENVIRONMENT
        if self._working_dir is not None:
            paths = (self._working_dir, environment.get("PYTHONPATH", ""))
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return environment | self._variables | {TOKEN_VARIABLE: self._token}


@contextlib.contextmanager
def autoscaling_nodes(
    path: str | Path, *, working_dir: str | None = None
) -> Iterator[str]:
    """Starts the cluster that a cluster file describes, on this machine.

    It ends with the context, also when this process is killed.

    Args:
        path: A Ray cluster file of provider ``fake_multinode``.
        working_dir: Folder that workers must be able to import from; None for the
            installed package.

    Yields:
        Its address, as ``ray_cluster`` takes it.

    Raises:
        InputError: There is no such file, or it is of another provider.
        ConfigError: The file is wrong.
        PlacementError: The head did not come up.
    """
    with AutoscalingNodes(load_local_nodes(path), working_dir=working_dir) as nodes:
        yield nodes.address


def _head_options(file: ClusterFile) -> list[str]:
    head = next(kind for kind in file.node_types if kind.is_head)
    resources = dict(file.document["available_node_types"][HEAD_TYPE]["resources"])
    options = [f"--num-cpus={resources.pop('CPU', 0)}"]
    for name, option in (
        ("GPU", "num-gpus"),
        ("memory", "memory"),
        ("object_store_memory", "object-store-memory"),
    ):
        if name in resources:
            options.append(f"--{option}={resources.pop(name)}")
    if resources:
        options.append(f"--resources={json.dumps(resources)}")
    if head.labels:
        pairs = (f"{key}={value}" for key, value in head.labels.items())
        options.append(f"--labels={','.join(pairs)}")
    return options


def _ray_program() -> Path:
    return Path(sys.executable).with_name("ray")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _short_temp() -> str | None:
    """Returns where temporary folders have short paths; None for the usual place."""
    return None if len(tempfile.gettempdir()) <= _TEMP_LENGTH else "/tmp"  # noqa: S108


def _ask_for_token() -> None:
    """Makes the nodes and this driver use a Ray token, as a local ``ray.init`` does.

    Ray's ports are open to the network of this machine. ``ray start`` turns
    authentication on only if it finds a token, and a driver that names an address
    never does. What the user chose by RAY_AUTH_MODE is respected.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    # This process may have read its settings before they were made.
    Config.initialize("")
    loader = AuthenticationTokenLoader.instance()
    try:
        found = loader.has_token()
    except AuthenticationError:  # Ray's answer when there is none at all
        found = False
    if not found:
        _write_token(Path.home() / ".ray" / "auth_token")
        loader.reset_cache()


def _write_token(place: Path) -> None:
    """Writes a new token where Ray looks for it, readable to the user alone."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
