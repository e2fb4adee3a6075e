"""The driver is lost at its own points, or one rank alone meets an error.

No run is paid twice for results that were lost, and no rank waits for another that
has given up.
"""

from __future__ import annotations

import json
import time

import pytest

from pft_ray.cluster import trainer, worker
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import LedgerStorageError, ModelError, RunFailedError
from pft_ray.ledger import Ledger
from pft_ray.training.local import LocalWork
from tests.contracts.stage import set_stage
from tests.tiny_job import write_job

QUIET = ("run_id", "ledger", "utility", "utility_all")


class Killed(BaseException):
    """The driver's process is gone."""


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    path = write_job(tmp_path / "job", cluster__workers=2)
    create_budget(path, runs=3)
    return path


def ledger_of(tmp_path) -> Ledger:
    return Ledger.open(tmp_path / "home" / "ledger.db")


@pytest.mark.parametrize("point", ["write_results", "end"])
def test_results_of_a_run_that_is_over_are_never_lost(
    job, tmp_path, monkeypatch, point
):
    """The same command writes them; it starts and pays for no other run."""

    def killed(*_args, **_kwargs):
        raise Killed

    stage = set_stage(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        if point == "end":
            patch.setattr(PrivateTrainer, "_end", killed)
        else:
            patch.setattr(trainer, "write_results", killed)
        with pytest.raises(Killed):
            PrivateTrainer(job).fit()
    stage.checkpoints.clear()  # of that driver's Ray
    (first,) = ledger_of(tmp_path).runs()
    assert not first.is_final

    result = PrivateTrainer(job).fit()
    assert result.resumed
    assert result.status == "completed"
    (status,) = ledger_of(tmp_path).runs()
    assert (status.run_id, status.status) == (result.run_id, "completed")
    assert status.num_steps_charged == first.num_steps_charged == 16
    assert status.num_looks_charged == first.num_looks_charged == 2
    used = [block.used_epsilon for block in ledger_of(tmp_path).blocks()]
    assert used == [8.0, 8.0], "one envelope of each block"

    stage.checkpoints.clear()
    other = PrivateTrainer(job).fit()
    assert not other.resumed
    for name in result.report.keys() - set(QUIET):
        assert result.report[name] == other.report[name], name


def test_an_error_of_one_rank_in_a_step_ends_the_group(job, tmp_path, monkeypatch):
    """An error of ours is no record's, but it may come up on one rank only."""
    stage = set_stage(monkeypatch)
    clipped_sum = LocalWork.clipped_sum

    def refused(self, positions, clip_norm):
        if stage.local.rank == 1:
            raise ModelError("The model is not usable.", "Use another.")
        return clipped_sum(self, positions, clip_norm)

    monkeypatch.setattr(LocalWork, "clipped_sum", refused)
    start = time.monotonic()
    with pytest.raises(RunFailedError, match="charged up to step 2"):
        PrivateTrainer(job).fit()
    assert time.monotonic() - start < 15, "nobody ran into a time limit"
    (status,) = ledger_of(tmp_path).runs()
    assert status.num_steps_charged == 4, "two grants, of which no step was made"
    assert not list((tmp_path / "job" / "runs").glob("*/report.json"))


@pytest.mark.parametrize("when", ["settle", "checkpoint_registered"])
def test_an_error_of_rank_0_alone_ends_all_ranks(job, tmp_path, monkeypatch, when):
    """A full disk, for example: the others do not wait for what never comes."""
    set_stage(monkeypatch)

    def full(*_args):
        raise LedgerStorageError("The disk is full.", "Free space.")

    monkeypatch.setattr(worker.CoordinatorClient, when, full)
    start = time.monotonic()
    with pytest.raises(LedgerStorageError, match="The disk is full"):
        PrivateTrainer(job).fit()
    assert time.monotonic() - start < 15, "nobody ran into a time limit"
    (notes,) = (tmp_path / "job" / "runs").glob("*/operator.json")
    assert json.loads(notes.read_bytes())["status"] == "failed"
    (status,) = ledger_of(tmp_path).runs()
    assert not status.is_final
    assert status.num_attempts == 1
