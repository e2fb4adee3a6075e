"""A Ray head of its own, whose control store is on disk; killed and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from pft_ray.cluster.local import RAY_ENVIRONMENT
from pft_ray.crypto import new_token

_TOKEN = "PFT_HEAD_TOKEN"
_ROOT = Path(__file__).resolve().parents[2]


class Head:
    """One node: control store, raylet and workers.

    Every process of it carries a token in its environment, so exactly these are
    ended, whoever their parent is now.

    Args:
        scenes: Folder whose ``scene.json`` tells the node's processes what to do.
        variables: Further environment of the node.
    """

    def __init__(self, scenes: Path, variables: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pft-h-", dir="/tmp"))
        self.storage = self.folder / "gcs"
        self.port = _free_port()
        self._token = new_token().hex()
        self.environment = (
            {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            | RAY_ENVIRONMENT
            | {
                "RAY_gcs_storage": "rocksdb",
                "RAY_gcs_storage_path": str(self.storage),
                "RAY_AUTH_MODE": "disabled",
                "RAY_health_check_period_ms": "500",
                "PYTHONPATH": str(_ROOT),
                "OMP_NUM_THREADS": "1",
                "PFT_KILLS": str(scenes),
            }
            | variables
        )
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the node; its control store goes on from what is on disk."""
        self.storage.mkdir(exist_ok=True)
        command = [
            str(Path(sys.executable).with_name("ray")),
            *("start", "--head", "--node-ip-address=127.0.0.1"),
            *(f"--port={self.port}", f"--temp-dir={self.folder / 'ray'}"),
            *("--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats"),
        ]
        done = subprocess.run(
            command,
            env=self.environment | {_TOKEN: self._token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (self.control_store,) = [
            p for p in self.processes() if p.name() == "gcs_server"
        ]
        self._store_command = self.control_store.cmdline()

    def lost_control_store(self) -> bool:
        store = self.control_store
        return not store.is_running() or store.status() == psutil.STATUS_ZOMBIE

    def restart_control_store(self) -> None:
        """Starts the control store alone, as whoever minds a head node does."""
        self.control_store = psutil.Popen(
            self._store_command,
            env=self.environment | {_TOKEN: self._token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Returns the node's processes, and no other."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_TOKEN) == self._token:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self) -> None:
        """SIGKILLs the whole node, as a power cut would."""
        while members := self.processes():
            for member in members:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(members, timeout=20)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
