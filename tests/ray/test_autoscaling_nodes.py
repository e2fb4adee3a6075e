"""A real autoscaling cluster on this machine, beside the Ray of the other tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pft_ray.cluster.cluster_file import MARKET_LABEL, REGION_LABEL
from tests.ray.conftest import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_LOCAL = _ROOT / "clusters" / "autoscaling-local.yaml"


@pytest.fixture
def other_ray(local_ray):
    """Processes of another Ray, which must all be there afterwards."""
    before = {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.name() in ("raylet", "gcs_server")
    }
    assert len(before) == 2
    yield
    assert all(not is_gone(pid) for pid in before)
    assert local_ray.get(local_ray.put(1)) == 1


def driver(how, **options):
    command = [sys.executable, "-m", "tests.kills.nodes_part", str(_LOCAL), how]
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nodes_come_and_go_and_nothing_is_left(other_ray, tmp_path):
    errors = tmp_path / "errors"
    with errors.open("w") as sink:
        program = driver("breathe", stderr=sink)
        out, _ = program.communicate(timeout=200)
    assert program.returncode == 0, errors.read_text()[-2000:]
    # Ray itself says nothing on standard output, also when a node dies.
    said = {line["word"]: line for line in map(json.loads, out.splitlines())}
    came, lost = said["came"], said["lost"]
    assert (came["type"], came["cpus"]) == ("slot", 1)
    assert came["labels"][REGION_LABEL] == "local-a"
    assert came["labels"][MARKET_LABEL] == "spot"
    assert lost["killed"] >= 1
    assert lost["others"] == 2  # raylet and control store of the head
    assert lost["others_live"]
    assert lost["seconds"] < 10  # 15 s by Ray's own settings
    assert said["drained"]["accepted"]
    assert not said["drained"]["unknown_accepted"]
    # The idle time-out of the file is 6 s; nothing else would take the node away.
    assert said["left"]["seconds"] > 3
    assert "possible" in said
    everybody = {*said["up"]["pids"], *said["end"]["pids"]}
    assert len(everybody) >= 4
    assert all(is_gone(pid) for pid in everybody)
    assert not Path(said["up"]["folder"]).exists()


def test_a_killed_driver_leaves_nothing(other_ray):
    program = driver("wait", stderr=subprocess.DEVNULL)
    try:
        up = json.loads(program.stdout.readline())
        assert up["word"] == "up"
        assert len(up["pids"]) >= 4
        assert not any(is_gone(pid) for pid in up["pids"])
    finally:
        program.kill()
        program.wait()
    wait_until(lambda: all(is_gone(pid) for pid in up["pids"]), what="their end")
    wait_until(lambda: not Path(up["folder"]).exists(), what="the folder's end")
