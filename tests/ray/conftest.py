"""One local Ray for the whole test run, in a temporary folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.tiny_job import make_model


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/ray" in str(item.path):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(240))


@contextmanager
def living_in(folder):
    """HOME and PFT_HOME for the time of a fixture."""
    saved = {name: os.environ.get(name) for name in ("HOME", "PFT_HOME")}
    os.environ["HOME"] = str(folder)
    os.environ["PFT_HOME"] = str(folder / "pft")
    yield folder
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """HOME and PFT_HOME of this test run."""
    with living_in(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def local_ray(home):
    """Starts Ray here and ends exactly the processes that were started."""
    import ray

    from pft_ray.cluster.local import ray_cluster

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with ray_cluster(None, num_cpus=4):
        started = [
            p for p in psutil.Process().children(recursive=True) if p.pid not in before
        ]
        yield ray
    end_processes(started)


def end_processes(processes):
    """Ends the given processes, and waits until they are gone."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


def wait_until(condition, timeout_s=60.0, what="condition"):
    """Polls until the condition gives a value; returns it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {timeout_s:g} s")


@pytest.fixture
def job_folder(tmp_path, tiny_model):
    """A folder with model and data; write_job fills in the job file."""
    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    return folder


@pytest.fixture
def fresh_home(tmp_path, monkeypatch, local_ray):
    """A ledger and key of this test's own."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def short_temp(prefix="pft-t-"):
    """A short folder for Ray's sockets."""
    return Path(tempfile.mkdtemp(prefix=prefix))
