"""What is started is ended, exactly: also when the start fails half-way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pft_ray.cluster import nodes, processes
from pft_ray.cluster.cluster_file import load_local_nodes
from pft_ray.cluster.nodes import AutoscalingNodes, autoscaling_nodes
from pft_ray.errors import InputError, PlacementError

_LOCAL = Path(__file__).resolve().parents[2] / "clusters" / "autoscaling-local.yaml"
_SLEEPER = "import time; time.sleep(600)"


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Where the nodes' folders are made, with a token that is there already."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(nodes, "_short_temp", lambda: str(tmp_path))
    return tmp_path


def pretend_ray(folder, monkeypatch, *, code, notes):
    """A `ray` that starts a child of its own, as Ray does, and then ends."""
    place = folder / "ray-program"
    place.write_text(
        f"#!{sys.executable}\nimport subprocess, sys, os\n"
        f"child = subprocess.Popen([sys.executable, '-c', {_SLEEPER!r}],"
        " start_new_session=True, stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL)\n"
        f"open({str(notes)!r}, 'w').write(str(child.pid))\n"
        f"print('no room left'); sys.exit({code})\n"
    )
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(nodes, "_ray_program", lambda: place)


def test_a_failed_start_leaves_nothing(folders, monkeypatch, tmp_path):
    notes = tmp_path / "pid"
    pretend_ray(folders, monkeypatch, code=3, notes=notes)
    with (
        pytest.raises(PlacementError, match="no room left") as caught,
        autoscaling_nodes(_LOCAL),
    ):
        pass
    assert caught.value.exit_code == 2
    assert is_gone(int(notes.read_text()))
    assert list(folders.glob("pft-n-*")) == []


def test_a_head_that_does_not_listen_is_a_failed_start(folders, monkeypatch, tmp_path):
    notes = tmp_path / "pid"
    pretend_ray(folders, monkeypatch, code=0, notes=notes)
    with pytest.raises(InputError, match="No Ray cluster answers"):
        AutoscalingNodes(load_local_nodes(_LOCAL)).__enter__()
    assert is_gone(int(notes.read_text()))
    assert list(folders.glob("pft-n-*")) == []


def is_gone(pid):
    """Whether it has ended, though nobody may have asked how yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def sleeper(token):
    environment = os.environ | {processes.TOKEN_VARIABLE: token}
    return subprocess.Popen([sys.executable, "-c", _SLEEPER], env=environment)


def test_only_those_with_the_token_are_ended():
    ours, others = sleeper("one"), sleeper("another")
    try:
        found = _until(lambda: processes.carriers("one"))
        assert [process.pid for process in found] == [ours.pid]
        assert processes.end_carriers("one")
        assert is_gone(ours.pid)
        assert not is_gone(others.pid)
    finally:
        ours.kill()
        others.kill()
        others.wait()
        ours.wait()


def test_one_who_carries_the_token_himself_survives_his_own_call(monkeypatch):
    """A driver that was started by a node must not end itself."""
    program = (
        "from pft_ray.cluster import processes\n"
        "print(processes.end_carriers('mine', 2), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {processes.TOKEN_VARIABLE: "mine", "PYTHONPATH": str(_LOCAL.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr


def test_the_guard_cleans_up_after_one_who_was_killed(tmp_path):
    folder = tmp_path / "nodes"
    folder.mkdir()
    ours = sleeper("guarded")
    guard = subprocess.Popen(
        [sys.executable, "-P", processes.__file__, "guarded", str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _until(lambda: processes.carriers("guarded"))
        # Ctrl-C or SIGTERM to everybody does not stop it before its work is done.
        _until(lambda: _ignores_sigterm(guard.pid))
        guard.terminate()
        assert ours.poll() is None
        assert folder.exists()
        guard.stdin.close()
        assert guard.wait(timeout=30) == 0
        assert ours.wait(timeout=10) == -9
        assert not folder.exists()
    finally:
        guard.kill()
        ours.kill()
        ours.wait()


def test_what_the_nodes_inherit(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_health_check_period_ms", "123")
    monkeypatch.setenv("PYTHONPATH", "before")
    file = load_local_nodes(_LOCAL)
    made = AutoscalingNodes(file, working_dir="here", variables={"EXTRA": "1"})
    environment = made._environment()
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_health_check_period_ms"] == "123"
    assert environment["RAY_health_check_failure_threshold"] == "3"
    assert environment["RAY_memory_monitor_refresh_ms"] == "0"
    assert environment["PYTHONPATH"] == f"here{os.pathsep}before"
    assert environment["EXTRA"] == "1"
    assert environment[processes.TOKEN_VARIABLE] == made._token
    assert made._token != AutoscalingNodes(file)._token
    assert processes.TOKEN_VARIABLE not in os.environ


def test_a_long_temporary_folder_is_not_used_for_sockets(monkeypatch):
    monkeypatch.setattr(nodes.tempfile, "gettempdir", lambda: "/a/very/long/folder" * 9)
    assert len(nodes._short_temp()) <= nodes._TEMP_LENGTH
    monkeypatch.setattr(nodes.tempfile, "gettempdir", lambda: "/tmp")
    assert nodes._short_temp() is None


def test_a_token_is_written_once_and_for_the_user_alone(tmp_path):
    place = tmp_path / "ray" / "auth_token"
    nodes._write_token(place)
    first = place.read_text()
    assert len(first) >= 64
    assert place.stat().st_mode & 0o077 == 0
    nodes._write_token(place)
    assert place.read_text() == first


def _ignores_sigterm(pid):
    mask = Path(f"/proc/{pid}/status").read_text().split("SigIgn:")[1].split()[0]
    return int(mask, 16) >> 14 & 1


def _until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value
