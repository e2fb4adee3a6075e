"""What was copied, exchanged or rolled back never buys a step that was not paid for."""

from __future__ import annotations

import shutil

import pytest
import torch

from pft_ray.cluster.run_folder import RunFolder, latest_checkpoint
from pft_ray.cluster.worker import Worker, WorkerSettings
from pft_ray.errors import (
    GrantRefusedError,
    LedgerBehindError,
    ResumeError,
    RunFailedError,
    VerificationError,
)
from pft_ray.training.checkpoint import write_checkpoint
from pft_ray.training.headers import STATE_FILE, CheckpointHeader
from tests.cluster.reserved import reserve

A, B = (bytes([n]) * 16 for n in (1, 2))
DIGEST = "ab" * 32


def write(folder: RunFolder, step: int, run_id: str, digest: str = DIGEST) -> str:
    """Writes a checkpoint into a run's folder; returns its name."""
    name = f"step-{step:06d}-attempt-1"
    place = folder.checkpoints / "life" / name
    place.mkdir(parents=True)
    header = CheckpointHeader(
        run_id, digest, step, 1, ledger_id="ab" * 16, sequence=step, root="cd" * 32
    )
    write_checkpoint(place, {"x": torch.full((2,), float(step))}, header)
    return name


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "mine")


def test_the_newest_whole_checkpoint_of_this_run_is_resumed(folder):
    names = [write(folder, step, "mine") for step in (4, 8)]
    assert latest_checkpoint(folder, names, DIGEST).name == names[-1]
    assert latest_checkpoint(folder, names[:1], DIGEST).name == names[0]
    assert latest_checkpoint(folder, [], DIGEST) is None, "only what is registered"


def test_a_checkpoint_of_another_run_is_never_resumed(folder):
    """Its steps were paid by the other run: this one's report would leave them out."""
    names = [write(folder, 4, "mine"), write(folder, 8, "other")]
    assert latest_checkpoint(folder, names, DIGEST).name == names[0]
    names.append(write(folder, 12, "mine", digest="00" * 32))
    assert latest_checkpoint(folder, names, DIGEST).name == names[0]


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, damage):
    names = [write(folder, step, "mine") for step in (4, 8)]
    state = folder.checkpoints / "life" / names[1] / STATE_FILE
    content = bytearray(state.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
        state.write_bytes(bytes(content))
    elif damage == "cut":
        state.write_bytes(bytes(content[:-1]))
    else:
        state.unlink()
    assert latest_checkpoint(folder, names, DIGEST).name == names[0]


def test_a_worker_loads_no_checkpoint_of_another_run(folder):
    """Ray, or somebody, may hand it one; its own eyes are the last ones."""
    write(folder, 8, "other")
    worker = object.__new__(Worker)
    worker.settings = WorkerSettings("mine", "", {}, "", {}, None, 1)

    class SamePlan:
        digest = DIGEST

    worker.plan = SamePlan()
    with pytest.raises(ResumeError, match="belongs to run other"):
        worker._load(next((folder.checkpoints / "life").iterdir()))


@pytest.fixture
def run(tmp_path):
    return reserve(tmp_path)


def copy_ledger(run, name: str) -> None:
    """Copies the ledger as a careful operator would, log included."""
    target = run.folder / name
    target.mkdir()
    for path in run.folder.glob("ledger.db*"):
        shutil.copy(path, target / path.name)


def put_back(run, name: str) -> None:
    for path in run.folder.glob("ledger.db*"):
        path.unlink()
    for path in (run.folder / name).iterdir():
        shutil.copy(path, run.folder / path.name)


def test_a_coordinator_does_not_start_on_a_ledger_that_was_rolled_back(run):
    """It would grant again what was spent: T_max steps on top of those."""
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator._ledger.close()
    copy_ledger(run, "old")

    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "resume")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.request(attempt, 0, A, 3, 6)
    coordinator.checkpoint_registered(attempt, 6, "step-6")
    coordinator._ledger.close()
    put_back(run, "old")
    with pytest.raises(LedgerBehindError, match="anchor"):
        run.coordinator()
    assert run.ledger().run_status(run.run_id).num_steps_charged == 3


def test_a_coordinator_does_not_start_on_another_history(run, tmp_path):
    """Another ledger that is as long as the anchor says."""
    coordinator = run.coordinator()
    coordinator._ledger.close()
    other = reserve(tmp_path / "other")
    other.coordinator()._ledger.close()
    for path in run.folder.glob("ledger.db*"):
        path.unlink()
    for path in other.folder.glob("ledger.db*"):
        shutil.copy(path, run.folder / path.name)
    with pytest.raises(VerificationError):
        run.coordinator()


def test_an_end_is_told_twice_and_written_once(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.end_run("completed", 3)
    position = run.ledger().position()
    coordinator.end_run("completed", 3)  # the reply to the first call was lost
    assert run.ledger().position() == position
    assert coordinator.request(attempt, 0, A, 3, 6).status == "closed"


def test_an_attempt_that_is_asked_for_again_is_the_same_one(run):
    """A lost reply is no second fault, and no second key for one attempt."""
    coordinator = run.coordinator()
    first = coordinator.open_attempt([A, B], 0, "start")
    coordinator.request(first, 0, A, 0, 3)
    number = coordinator.open_attempt([A, B], 1, "void-step")
    key = coordinator._attempt.key
    assert coordinator.open_attempt([A, B], 1, "void-step") == number
    assert coordinator._attempt.key == key
    assert run.ledger().run_status(run.run_id).num_attempts == 2
    coordinator.request(number, 0, A, 1, 3)
    third = coordinator.open_attempt([A, B], 2, "coordinator-restart")
    assert third == number + 1, "once a key was handed out, another attempt opens"
    assert coordinator._attempt.key != key


def test_a_roster_that_shares_a_rank_with_another_gets_no_old_grant(run):
    coordinator = run.coordinator()
    first = coordinator.open_attempt([A, B], 0, "start")
    coordinator.request(first, 0, A, 0, 3)
    second = coordinator.open_attempt([A], 0, "start")
    assert second != first
    assert coordinator.request(first, 0, A, 0, 3).status == "closed"
    with pytest.raises(GrantRefusedError):
        coordinator.request(second, 1, B, 0, 3)


def test_two_void_steps_at_one_place_still_end_the_run(run):
    """The repeated call above must not hide a second fault."""
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    attempt = coordinator.open_attempt([A], 0, "void-step")
    coordinator.request(attempt, 0, A, 0, 3)
    with pytest.raises(RunFailedError, match="charged up to step 3"):
        coordinator.open_attempt([A], 0, "void-step")
