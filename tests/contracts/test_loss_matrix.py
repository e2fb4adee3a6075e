"""Whoever is lost, and whenever: no key twice, charge before noise, one epsilon.

Ranks are threads, so that losses which no signal makes can be put at an exact point:
a reply alone, each call before and after it was served, each moment of a look, and an
allowance that is used up. ``test_killed_processes`` kills real processes.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from pft_ray.assurance.report import build_report
from pft_ray.cluster.summary import report_facts
from pft_ray.ledger import verify
from tests.contracts.kills import RUN, Cell, Kill, make_template, run_cell
from tests.contracts.spies import find_reuse

RANK_POINTS = (
    *("entered", "granted", "summed", "checked", "drawn", "reduced", "applied"),
    *("saving", "stored", "saved", "looking", "looked"),
)
CALLS = (
    *("open_attempt", "request", "charge_look", "store_release", "released_looks"),
    "checkpoint_registered",
)

SINGLE = [
    # A rank dies: before noise, between noise and reduction, after it, while it saves.
    *(Kill("rank", point, nth=1, rank=0) for point in RANK_POINTS),
    *(
        Kill("rank", point, nth=5, rank=1)
        for point in ("granted", "summed", "checked", "drawn", "reduced", "applied")
    ),
    # The coordinator dies before it appends, after it, or after its reply was lost.
    Kill("coordinator", "append:before", nth=2),
    Kill("coordinator", "append:after", nth=1),
    Kill("coordinator", "append:after", nth=4),
    *(Kill("coordinator", f"{call}:before") for call in CALLS),
    *(Kill("coordinator", f"{call}:after") for call in CALLS),
    *(Kill("coordinator", "request:after", nth=3, rank=rank) for rank in (0, 1)),
    # Only the reply is lost: the same call is made again.
    *(Kill("reply", f"{call}:after", nth=1) for call in (*CALLS, "end_run")),
    # The whole driver dies; the next one starts from what the ledger names.
    *(
        Kill("driver", point)
        for point in ("granted", "drawn", "reduced", "stored", "saved", "looked")
    ),
    Kill("stop", "applied", nth=5),
]
PUBLIC_DIFFERENCES = ("utility", "utility_all")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def quiet_report(template, tmp_path_factory):
    """The report of a run in which nothing is lost."""
    cell = run_cell(template, tmp_path_factory.mktemp("quiet") / "cell", [])
    assert cell.status == "completed"
    assert cell.lives == 1
    assert_sound(cell)
    assert len(cell.host.register.charged()) == 16, "nothing was paid in vain"
    return report_of(cell)


def report_of(cell: Cell) -> dict:
    facts = report_facts(cell.host.built, cell.host.ledger, RUN)
    return build_report(facts)


def assert_sound(cell: Cell) -> None:
    """What has to hold whatever was lost."""
    host, plan = cell.host, cell.host.plan
    assert find_reuse(host.register) == []
    charged = host.register.charged()
    left = {entry[:2] for entry in host.register.entered}
    assert left <= charged
    assert len(charged) <= plan.num_steps_max
    status = host.ledger.run_status(RUN)
    assert status.num_steps_charged == len(charged)
    assert sum(cell.released.values()) <= len(charged)
    assert status.num_looks_charged <= plan.evaluation.num_looks_max
    assert len(host.register.looked) <= status.num_looks_charged
    # Each share of each step that left was drawn, so the noise was whole.
    drawn = {meaning for meaning, _, _ in host.register.drawn}
    for attempt, step in left:
        whole = {("noise", attempt, step, share) for share in range(plan.num_shares)}
        ranks = {e[2] for e in host.register.entered if e[:2] == (attempt, step)}
        if len(ranks) == len(cell.works):
            assert whole <= drawn
    found = verify(host.folder / "ledger.db")
    (check,) = found.runs
    assert check.num_steps_charged == len(charged)
    assert check.epsilon <= check.envelope + 1e-9


def assert_same_report(cell: Cell, expected: dict) -> None:
    """Nothing of what happened is in the report but released values."""
    found = report_of(cell)
    assert found.keys() == expected.keys()
    for name in expected.keys() - set(PUBLIC_DIFFERENCES):
        assert found[name] == expected[name], name
    assert found["epsilon"] == expected["epsilon"]


@pytest.mark.parametrize("kill", SINGLE, ids=str)
def test_one_loss(template, tmp_path, quiet_report, kill):
    cell = run_cell(template, tmp_path / "cell", [kill])
    assert cell.host.struck == [kill], "the loss happened"
    assert_sound(cell)
    assert_same_report(cell, quiet_report)
    assert cell.status == "completed"
    steps = {look["step"] for look in report_of(cell)["utility_all"]}
    assert steps == {8, 16}, "one loss costs no look"
    assert torch.equal(cell.works[0].vector, cell.works[1].vector)


def test_the_matrix_is_large_enough():
    assert len(SINGLE) >= 30
    assert len(set(map(str, SINGLE))) == len(SINGLE)


def exhausting(point: str) -> list[Kill]:
    """The driver dies again and again: each time costs steps, until none is left."""
    return [Kill("driver", point, nth=3 * (k + 1), rank=k % 2) for k in range(12)]


@pytest.mark.parametrize("point", ["checked", "drawn", "applied"])
def test_an_allowance_that_is_used_up(template, tmp_path, quiet_report, point):
    """The run ends with what it has, at T_max charged steps and the same epsilon."""
    cell = run_cell(template, tmp_path / "cell", exhausting(point))
    assert len(cell.host.struck) >= 3
    assert_sound(cell)
    assert_same_report(cell, quiet_report)
    assert cell.status == "budget_exhausted"
    assert len(cell.host.register.charged()) == cell.host.plan.num_steps_max


def random_kills(seed: int) -> list[Kill]:
    """Two to five losses at random points."""
    source = random.Random(seed)
    kills: dict[tuple, Kill] = {}
    for _ in range(source.randint(2, 5)):
        rank = source.randint(0, 1)
        if source.random() < 0.5:
            kill = Kill("rank", source.choice(RANK_POINTS[:7]), rank=rank)
        else:
            victim = source.choice(["coordinator", "reply", "driver"])
            call = source.choice(["open_attempt", "request", "charge_look"])
            moment = source.choice(["before", "after"])
            rank = rank if call == "request" else 0
            kill = Kill(victim, f"{call}:{moment}", rank=rank)
        kill = replace(kill, nth=source.randint(1, 6))
        kills[(kill.point, kill.rank, kill.nth)] = kill
    return list(kills.values())


@pytest.mark.parametrize("seed", range(16))
def test_several_losses(template, tmp_path, quiet_report, seed):
    """The run may end by its budget or by two deaths at one step: always soundly."""
    cell = run_cell(template, tmp_path / "cell", random_kills(seed))
    assert_sound(cell)
    assert_same_report(cell, quiet_report)
    assert cell.status in ("completed", "budget_exhausted", "failed")
