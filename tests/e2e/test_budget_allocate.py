"""The next job's share, from the reports of the jobs before."""

from __future__ import annotations

import json

import pytest

from pft_ray.accounting.filters import UNITS, budget_units
from pft_ray.ledger import FilterSpec, Ledger
from pft_ray.ledger.home import keys_dir, ledger_location
from tests.e2e.refusals import pft
from tests.ledger.builders import SPLIT, fingerprints

DELTA, ORDER = 1e-5, 8
WHOLE = budget_units(4.0, DELTA, ORDER)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A filter block of epsilon 4 at order 8, all for training, and two reports."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rows = {"record": fingerprints(0, 5)}
    with Ledger.open(ledger_location(None), keys_dir=keys_dir(), create=True) as ledger:
        ledger.register_dataset("d", public=True, namespaces=rows, facts={})
        ledger.filters.create(
            FilterSpec(
                name="d/train",
                dataset="d",
                predicate={**SPLIT, "role": "train"},
                unit="record",
                epsilon=4.0,
                delta=DELTA,
                order=ORDER,
                purposes={"training": 1.0},
            )
        )
    for run, value in (("one", 0.80), ("two", 0.90), ("three", 0.901)):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        interval = [value - 0.02, value + 0.02]
        utility = {"metric": "accuracy", "private": value, "interval": interval}
        content = json.dumps({"run_id": run, "utility": utility})
        (folder / "report.json").write_text(content)
    return tmp_path


def allocate(*options):
    return pft("budget", "allocate", "d/train", *options, "--json")


def test_a_gain_lowers_the_next_share_and_a_stall_raises_it(home):
    gained = allocate("--jobs-left", 4, "--after", "one", "--after", "two").json
    stalled = allocate("--jobs-left", 4, "--after", "two", "--after", "three").json
    assert gained["rho_units"] == WHOLE // 7
    assert stalled["rho_units"] == WHOLE * 2 // 5
    assert allocate("--jobs-left", 1).json["rho_units"] == WHOLE
    assert gained["rho_left"] == WHOLE / UNITS


def test_the_epsilon_it_names_costs_no_more_than_the_share(home):
    found = allocate("--jobs-left", 2, "--boost", 1).json
    assert budget_units(found["epsilon"], DELTA, ORDER) <= found["rho_units"] + 2
    assert 0 < found["epsilon"] < 4
    words = pft("budget", "allocate", "d/train", "--jobs-left", 2).out
    assert "privacy.epsilon" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs-left", 0], "--jobs-left is 0"),
        (["--jobs-left", 2, "--boost", 0.5], "boost"),
        (["--jobs-left", 2, "--after", "none"], "none"),
        (["--jobs-left", 2, "--purpose", "looks"], "no purpose"),
    ],
)
def test_what_cannot_be_used_is_bad_input(home, options, says):
    answer = allocate(*options)
    assert answer.code == 2
    assert says in answer.json["error"]["message"]
