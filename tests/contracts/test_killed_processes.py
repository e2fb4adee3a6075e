"""Real processes, really killed, at every point of the protocol; without Ray.

Workers, coordinator, driver and PostgreSQL get SIGKILL. ``KILL_SEED`` repeats the
random cells of a failed run; a cell prints it.
"""

from __future__ import annotations

import os

import pytest

from tests.kills.cases import Kill, fixed_kills, random_kills
from tests.kills.journal import RUN
from tests.kills.judge import Evidence, Judge
from tests.kills.plain import Cell, Stage

SEED = int(os.environ.get("KILL_SEED") or int.from_bytes(os.urandom(3)))
FIXED = fixed_kills()
NUM_RANDOM = 3


@pytest.fixture(scope="module")
def stage():
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def quiet(stage) -> Cell:
    """A run in which nobody is killed."""
    cell = stage.run([])
    assert cell.status == "completed"
    assert cell.drivers == 1
    return cell


@pytest.fixture(scope="module")
def judge(quiet) -> Judge:
    judge = Judge(quiet.report["epsilon"])
    assert judge.faults(evidence_of(quiet)) == []
    return judge


def evidence_of(cell: Cell) -> Evidence:
    return Evidence(cell.ledger, RUN, cell.folder / "journal", cell.report["epsilon"])


def assert_sound(cell: Cell, judge: Judge) -> None:
    evidence = evidence_of(cell)
    assert judge.faults(evidence) == []
    assert evidence.released, "something was released"
    assert len({outcome["vector"] for outcome in cell.outcomes}) == 1


@pytest.mark.parametrize("kill", FIXED, ids=str)
def test_one_kill(stage, judge, quiet, kill):
    cell = stage.run([kill])
    assert cell.struck == [kill], "the kill happened"
    assert_sound(cell, judge)
    assert cell.status == "completed"
    assert cell.drivers == (2 if kill.victim == "driver" else 1)
    looks = [look["step"] for look in cell.report["utility_all"]]
    assert looks == [look["step"] for look in quiet.report["utility_all"]]
    if kill.victim == "frozen-coordinator":
        assert evidence_of(cell).of("stale"), "the replaced coordinator was asked"


def test_the_matrix_is_large_enough():
    assert len(FIXED) >= 30
    assert len(set(map(str, FIXED))) == len(FIXED)
    assert {kill.victim for kill in FIXED} == {
        *("worker", "coordinator", "driver", "postgres", "frozen-coordinator")
    }


@pytest.mark.parametrize("number", range(NUM_RANDOM))
def test_a_random_kill(stage, judge, number):
    kill = random_kills(SEED, NUM_RANDOM)[number]
    print(f"KILL_SEED={SEED}: {kill}")  # noqa: T201 - shown when it fails
    cell = stage.run([kill])
    assert_sound(cell, judge)
    assert cell.status == "completed"
    assert cell.struck == [kill], "the kill happened"


def test_several_kills_in_one_run(stage, judge):
    """Two workers at different grants and the server: T_max covers all of it."""
    kills = [
        Kill("postgres", "append:after", nth=2),
        Kill("coordinator", "append:before", nth=4),
        Kill("worker", "reduced", nth=10, rank=1),
    ]
    cell = stage.run(kills)
    assert cell.struck == kills
    assert_sound(cell, judge)
    assert cell.status in ("completed", "budget_exhausted")


def test_a_wall_clock_that_jumps_by_years_changes_nothing(stage, judge):
    kills = [Kill("coordinator", "append:after", nth=3)]
    cell = stage.run(kills, clock_jumps=True)
    assert cell.struck == kills
    assert_sound(cell, judge)
    assert cell.status == "completed"
