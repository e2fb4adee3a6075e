"""``pft budget`` on filter blocks: creating, moving, showing, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pft_ray.accounting.events import Repeat
from pft_ray.accounting.filter_calibration import epsilon_at_order
from pft_ray.accounting.filters import UNITS, budget_units, rho_units
from pft_ray.config import build_job, load_job
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import ledger_location
from tests.e2e.refusals import pft
from tests.tiny_job import write_job

BLOCK = "tiny-data/train"


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path / "job", privacy__accounting="filter")


def purposes(block=BLOCK):
    rows = pft("budget", "show", block, "--json").json["blocks"][0]["filter"]
    return rows, {p["name"]: p["remaining_rho_units"] for p in rows["purposes"]}


def test_the_training_block_is_divided_as_asked(job):
    parts = ["--purpose", "training=0.8", "--purpose", "tuning/first=0.2"]
    made = pft(
        "budget", "create", job, "--epsilon", "20", "--delta", "1e-5", *parts, "--json"
    )
    whole, free = purposes()
    assert free["training"] == int(whole["rho_units"] * 0.8)
    assert free["training"] + free["tuning/first"] <= whole["rho_units"]
    assert set(purposes("tiny-data/validation")[1]) == {"evaluation", "unassigned"}
    assert made.json["blocks"][0]["purposes"] == free
    words = " ".join(pft("budget", "show", BLOCK).out.split())
    assert "tuning/first 20.0% of rho" in words
    again = pft(
        "budget", "create", job, "--epsilon", "20", "--delta", "1e-5", *parts, "--json"
    )
    assert [block["created"] for block in again.json["blocks"]] == [False, False]


def test_several_runs_of_known_noise_get_the_order_that_is_best_for_all(job):
    noise = ["--set", "privacy.epsilon=null", "--set", "privacy.noise_multiplier=3"]
    alone = build_job(load_job(job, noise[1::2]), job.parent)
    made = pft("budget", "create", job, "--runs", "50", *noise, "--json").json
    block = made["blocks"][0]
    assert block["order"] < alone.orders[BLOCK]
    assert made["set"]["privacy.filter.order"] == block["order"]
    step = alone.plan.step_event
    costs = {
        n: epsilon_at_order(Repeat(step, 50 * alone.plan.num_steps_max), 1e-5, n)
        for n in range(2, 33)
    }
    assert min(costs, key=costs.get) == block["order"]
    assert block["epsilon"] == pytest.approx(costs[block["order"]], abs=1e-8)
    assert [row["runs_left"] for row in made["blocks"]] == [50, 50]

    says = pft("train", job, "--dry-run", *noise)
    assert says.code == 2
    assert f"privacy.filter.order: {block['order']}" in " ".join(says.err.split())
    section = ", ".join(f"{k.split('.')[-1]}: {v}" for k, v in made["set"].items())
    noise += ["--set", f"privacy.filter={{{section}}}"]
    assert pft("train", job, "--dry-run", *noise).code == 0
    priced = pft("plan", job, *noise, "--json").json
    assert [row["fits"] for row in priced["blocks"]] == [True, True]


def test_several_runs_of_known_epsilon_keep_their_order(job):
    made = pft("budget", "create", job, "--runs", "5", "--json").json
    assert made["set"] == {}
    assert [row["runs_left"] for row in made["blocks"]] == [5, 5]
    assert pft("train", job, "--dry-run").code == 0


def test_moving(job):
    pft("budget", "create", job)
    whole, free = purposes()
    said = pft(
        *("budget", "move", BLOCK, "--from", "training", "--to", "training/epoch-2"),
        *("--fraction", "0.25", "--json"),
    ).json
    assert said["moved_rho_units"] == whole["rho_units"] // 4
    pft("budget", "move", BLOCK, "--from", "training", "--to", "tuning", "--rho", "0.5")
    _, after = purposes()
    assert after["tuning"] == UNITS // 2
    assert after["training/epoch-2"] == whole["rho_units"] // 4
    assert sum(after.values()) == sum(free.values())


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (
            [BLOCK, "--from", "training", "--to", "x", "--fraction", "1.5"],
            3,
            "budget-refused",
        ),
        (["none", "--from", "training", "--to", "x", "--rho", "1"], 2, "unknown-block"),
        ([BLOCK, "--from", "none", "--to", "x", "--rho", "0.1"], 2, "unknown-purpose"),
        ([BLOCK, "--from", "training", "--to", "x", "--rho", "nan"], 2, "bad-input"),
        ([BLOCK, "--from", "training", "--to", "x", "--rho", "inf"], 2, "bad-input"),
        ([BLOCK, "--from", "training", "--to", "x", "--rho", "-1"], 2, "bad-input"),
        ([BLOCK, "--from", "training", "--to", "x", "--rho", "0"], 2, "bad-input"),
        ([BLOCK, "--from", "training", "--to", "x", "--rho", "1e-13"], 2, "bad-input"),
        (
            [BLOCK, "--from", "training", "--to", "x", "--fraction", "1e-20"],
            2,
            "bad-input",
        ),
        ([BLOCK, "--from", "training", "--to", "x"], 2, "bad-input"),
        (
            [BLOCK, "--from", "training", "--to", "training", "--rho", "1"],
            2,
            "bad-input",
        ),
        (["p/t", "--from", "training", "--to", "x", "--rho", "1"], 2, "block-mode"),
        (
            ["p/t", "--from", "training", "--to", "x", "--fraction", "0.5"],
            2,
            "block-mode",
        ),
    ],
)
def test_moves_that_are_refused_change_nothing(job, arguments, code, word):
    pft("budget", "create", job)
    plan = ["--mode", "plan", "--set", "privacy.block=p/t"]
    pft("budget", "create", job, *plan, "--set", "evaluation.block=p/v")
    with Ledger.open(ledger_location(None)) as ledger:
        before = ledger.position()
        answer = pft("budget", "move", *arguments, "--json")
        assert (answer.code, answer.json["error"]["code"]) == (code, word)
        assert ledger.position() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "both"],
        ["--mode", "plan", "--purpose", "training=0.5"],
        ["--purpose", "training"],
        ["--purpose", "training=0"],
        ["--purpose", "training=nan"],
        ["--purpose", "training=1e-20"],
        ["--purpose", "training=0.6", "--purpose", "training=0.2"],
        ["--purpose", "training=0.6", "--purpose", "tuning=0.6"],
        ["--purpose", "Not A Path=0.6"],
        ["--epsilon", "8", "--delta", "1e-4"],
    ],
)
def test_blocks_that_are_refused(job, options):
    answer = pft("budget", "create", job, *options, "--json")
    assert answer.code == 2
    assert pft("budget", "show", "--json").json.get("blocks", []) == []
    if Path(ledger_location(None)).exists():
        with Ledger.open(ledger_location(None)) as ledger:
            assert ledger.datasets() == []


def test_a_given_budget_gets_the_order_that_holds_most_runs(job):
    noise = ["--set", "privacy.epsilon=null", "--set", "privacy.noise_multiplier=4"]
    budget = ["--epsilon", "30", "--delta", "1e-5"]
    made = pft("budget", "create", job, *budget, *noise, "--json").json["blocks"][0]
    event = build_job(load_job(job, noise[1::2]), job.parent).plan.event
    rooms = {n: budget_units(30, 1e-5, n) // rho_units(event, n) for n in range(2, 65)}
    assert rooms[made["order"]] == max(rooms.values()) == made["runs_left"]
