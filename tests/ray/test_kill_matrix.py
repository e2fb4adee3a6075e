"""Ten kills through Ray Train, in one run on a cluster whose head node is lost, too."""

from __future__ import annotations

import pytest

from tests.kills.cases import fixed_ray_kills
from tests.kills.journal import read_journal
from tests.kills.judge import Evidence, Judge
from tests.kills.ray_names import KEYS
from tests.kills.ray_runs import (
    RayRun,
    RayStage,
    planned_epsilon,
    rebirth_faults,
    secrets_stored,
)

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


@pytest.mark.timeout(660)
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
    assert rebirth_faults(run) == []
    assert run.reborn["num_steps_charged"] > 0
    assert run.reborn["epoch"] < max(run.epochs), "the next driver took the run"
    assert run.epochs == sorted(set(run.epochs))


def test_no_key_and_no_password_is_in_the_storage_of_the_control_store(stage, run):
    assert secrets_stored(stage, run) == []
    keys = (run.folder / KEYS).read_text().split()
    lines = read_journal(run.folder / "journal")
    assert len(keys) == len([e for e in lines if e["what"] == "attempt"]) >= 5
    assert not list((stage.home / "keys").glob("ledger-of-*")), "its file is removed"


def test_most_kills_go_through_ray_train():
    assert len(KILLS) >= 10
    assert {kill.victim for kill in KILLS} == {
        *("worker", "coordinator", "driver", "postgres", "gcs", "head")
    }
