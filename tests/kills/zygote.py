"""A process that has imported everything and forks the processes of a run.

Importing torch takes seconds, a fork milliseconds: thirty cells of three to six
processes each stay cheap. Every process of a run is a child of this one, so the death
of one of them ends no other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path


class Zygote:
    """The test's side: starts processes by role and ends the zygote."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pft-z-"))
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.zygote", str(self.folder)],
            env=environment,
            cwd=root,
            stdin=subprocess.PIPE,
        )
        end = time.monotonic() + 120
        while not self.address.exists():
            assert self._process.poll() is None, "the zygote did not start"
            assert time.monotonic() < end, "the zygote did not start"
            time.sleep(0.05)

    @property
    def address(self) -> Path:
        return self.folder / "socket"

    @property
    def template(self) -> Path:
        """Folder with the built job's ledger and reservation."""
        return self.folder / "template"

    def spawn(self, role: str, /, **scene) -> int:
        return spawn(str(self.address), role, **scene)

    def close(self) -> None:
        import shutil

        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends, as it would after the test's own death
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def spawn(address: str, role: str, /, **scene) -> int:
    """Has the zygote fork a process; returns its pid."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps({"role": role, **scene}).encode())
        connection.shutdown(socket.SHUT_WR)
        return int(connection.makefile().read())


def open_pid(pid: int) -> int | None:
    """Returns a descriptor that can be read when the process is gone; None: it is."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def is_gone(pid: int, within_s: float = 0.0) -> bool:
    """Whether a process has ended, or ends in the time given."""
    descriptor = open_pid(pid)
    if descriptor is None:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    """SIGKILLs one process, and waits until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    assert is_gone(pid, 20), "a killed process stays"


def _main(folder: Path) -> None:
    # Everything a role needs is imported here, once.
    from pft_ray.accounting.curves import epsilon_curve
    from tests.contracts.kills import make_template
    from tests.kills import roles

    template = make_template(_made(folder / "template"))
    epsilon_curve(template.built.plan)  # kept in a cache that every fork inherits
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket.new"))
    listener.listen(64)
    (folder / "socket.new").rename(folder / "socket")
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        scene = json.loads(connection.makefile().read())
        pid = os.fork()
        if pid == 0:
            listener.close()
            connection.close()
            _live(roles, scene, template)
        connection.sendall(str(pid).encode())
        connection.close()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _live(roles, scene: dict, template) -> None:
    """Is a process of a run; ends without the zygote's own clean-up."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        log = os.open(
            Path(scene["folder"]) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(0)
        roles.play(scene, template)
        code = 0
    except BaseException:  # noqa: BLE001 - as a process that ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
