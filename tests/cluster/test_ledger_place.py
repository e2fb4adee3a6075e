"""A database's address does not travel through Ray; the file that holds it is ours."""

from __future__ import annotations

import pickle
import stat

import pytest

from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.cluster.fit import fit_workers
from pft_ray.cluster.ledger_place import (
    forget_place,
    hide_place,
    open_place,
    read_place,
)
from pft_ray.cluster.run_folder import RunFolder
from pft_ray.config import build_job, load_job
from pft_ray.errors import InputError
from tests.cluster.reserved import reserve
from tests.tiny_job import write_job

SECRET = "hush-hush"
URL = f"postgresql://me:{SECRET}@db.example:5433/budget?sslmode=require"


def test_what_travels_names_a_file_of_the_owner_alone(tmp_path):
    place = hide_place(URL, tmp_path / "keys", "run-1")
    config = CoordinatorConfig(place, str(tmp_path / "keys"), "run-1", "anchor")
    sent = pickle.dumps(config)
    for part in (SECRET, "db.example", "budget", "me:"):
        assert part.encode() not in sent
    (file,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert read_place(place) == URL


def test_a_run_taken_up_again_writes_its_file_anew(tmp_path):
    first = hide_place(URL, tmp_path, "run-1")
    again = hide_place(URL + "&connect_timeout=3", tmp_path, "run-1")
    assert first == again
    assert read_place(again).endswith("connect_timeout=3")
    forget_place(again)
    assert not list(tmp_path.iterdir())
    forget_place(again)
    with pytest.raises(InputError, match="cannot be read"):
        read_place(again)


def test_a_file_is_named_by_its_path(tmp_path):
    reserved = reserve(tmp_path)
    place = hide_place(reserved.url, reserved.keys, reserved.run_id)
    assert place == reserved.url
    with open_place(place, str(reserved.keys)) as ledger:
        assert ledger.run_status(reserved.run_id).num_steps_charged == 0
    assert Coordinator(reserved.config()).status()["epoch"] == 1


def test_workers_are_not_told_the_address(tmp_path, monkeypatch):
    """The job file may hold it, and Ray stores what a worker group is given."""
    job = write_job(tmp_path, ledger__url=URL)
    built = build_job(load_job(job), tmp_path)
    given = {}

    class Trainer:
        def __init__(self, _function, **settings):
            given.update(settings)

        def fit(self):
            raise RuntimeError

    monkeypatch.setattr("pft_ray.cluster.fit.TorchTrainer", Trainer)
    fit_workers(built, RunFolder(tmp_path / "run"), None, 2)
    assert "job" in given["train_loop_config"]
    assert SECRET not in repr(given)
    assert SECRET.encode() not in pickle.dumps(given["train_loop_config"])
