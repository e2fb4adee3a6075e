"""Ten kills through Ray Train, in one run on a cluster whose head node is lost, too."""

from __future__ import annotations

import pytest

from tests.kills.cases import fixed_ray_kills
from tests.kills.journal import read_journal
from tests.kills.judge import Evidence, Judge
from tests.kills.ray_parts import KEYS
from tests.kills.ray_runs import PASSWORD, RayRun, RayStage, planned_epsilon

KILLS = fixed_ray_kills()


@pytest.fixture(scope="module")
def stage():
    stage = RayStage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def run(stage) -> RayRun:
    """The run, killed ten times."""
    return stage.run(KILLS, look_at_reborn=True)


@pytest.mark.timeout(480)
def test_ten_kills_end_in_the_report_of_a_quiet_run(run):
    assert run.error is None
    assert run.struck == KILLS
    assert run.status in ("completed", "budget_exhausted")
    judge = Judge(planned_epsilon(run.folder))
    evidence = Evidence(
        run.ledger, run.run_id, run.folder / "journal", run.report["epsilon"]
    )
    assert judge.faults(evidence) == []
    assert evidence.released


def test_the_coordinator_survives_its_head_node(run):
    """It comes back by itself, as a replay of the ledger, under an epoch of its own."""
    assert run.reborn is not None
    assert run.reborn["num_steps_charged"] > 0
    assert run.reborn["released"] == {}, "it has no attempt and no key"
    assert run.reborn["epoch"] in run.epochs
    assert run.reborn["epoch"] < max(run.epochs), "the next driver took the run"
    assert run.epochs == sorted(set(run.epochs))


def test_no_key_and_no_password_is_in_the_storage_of_the_control_store(stage, run):
    stored = b"".join(
        path.read_bytes() for path in stage.head.storage.rglob("*") if path.is_file()
    )
    # What the actor is constructed with is there, as plain bytes.
    assert f"ledger-of-{run.run_id}".encode() in stored
    keys = [bytes.fromhex(key) for key in (run.folder / KEYS).read_text().split()]
    assert len(keys) == len(
        [e for e in read_journal(run.folder / "journal") if e["what"] == "attempt"]
    )
    for key in keys:
        assert key not in stored
        assert key.hex().encode() not in stored
    assert PASSWORD.encode() not in stored
    assert not list((stage.home / "keys").glob("ledger-of-*")), "its file is removed"


def test_most_kills_go_through_ray_train():
    assert len(KILLS) >= 10
    assert {kill.victim for kill in KILLS} == {
        *("worker", "coordinator", "driver", "postgres", "gcs", "head")
    }
