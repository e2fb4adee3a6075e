"""Export, import check and burn-down through the command line, on a real ledger."""

from __future__ import annotations

import json
import stat

import pytest

from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import keys_dir
from tests.e2e.refusals import pft
from tests.tiny_job import write_job


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A ledger of its own with a used run and a reserved one."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path, rows=200)
    assert pft("budget", "create", job, "--runs", 4).code == 0
    trainer = PrivateTrainer(job)
    with Ledger.open(trainer.ledger_url, keys_dir=keys_dir()) as ledger:
        for run_id in ("first", "second"):
            ledger.reserve(run_id, trainer.built.plan, trainer.built.envelopes)
        epoch = ledger.take_epoch("first")
        attempt = ledger.open_attempt("first", epoch, 0, "start")
        ledger.charge_steps("first", epoch, attempt, 0, 1, "0" * 32)
    return tmp_path


def test_an_export_is_checked_against_its_ledger(home):
    answer = pft("budget", "export", "out.jsonl", "--json").json
    check = pft("budget", "import-check", "out.jsonl", "--json")
    assert check.code == 0
    assert check.json["relation"] == "same"
    assert check.json["num_entries"] == answer["sequence"]
    assert {run["run_id"] for run in check.json["runs"]} == {"first", "second"}
    assert pft("budget", "release", "second").code == 0
    words = pft("budget", "import-check", "out.jsonl")
    assert "begins with these" in words.out
    assert pft("budget", "export", "out.jsonl").code == 2


def test_a_changed_export_ends_with_4_and_names_the_row(home):
    pft("budget", "export", "out.jsonl")
    path = home / "out.jsonl"
    path.write_text(path.read_text().replace('"run_id": "first"', '"run_id": "fir5t"'))
    answer = pft("budget", "import-check", "out.jsonl", "--json")
    assert answer.code == 4
    assert answer.json["error"]["details"]["row"] > 1


def test_the_burn_down_lists_runs_and_draws_them(home):
    block = pft("budget", "show", "--json").json["blocks"][0]
    name = block["name"]
    shown = pft("budget", "show", name, "--plot", "burn.svg", "--json").json
    steps = shown["blocks"][0]["burn_down"]
    assert [(s["run_id"], s["is_used"]) for s in steps] == [
        ("first", True),
        ("second", False),
    ]
    part = block["epsilon"] / 4
    assert [s["left"] for s in steps] == pytest.approx([3 * part, 2 * part])
    assert steps[-1]["left"] == pytest.approx(block["remaining_epsilon"])
    assert "<svg" in (home / "burn.svg").read_text()
    words = pft("budget", "show", name).out
    assert "first" in words
    assert "(reserved)" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plot", "x.svg"], "without a block"),
        (["tiny-data/train", "--plot", "x.txt"], "x.txt"),
        (["tiny-data/train", "--plot", "none/x.svg"], "cannot be written"),
    ],
)
def test_plots_that_cannot_be_made_are_bad_input(home, options, says):
    answer = pft("budget", "show", *options, "--json")
    assert answer.code == 2
    assert says in answer.json["error"]["message"]


def test_what_verbs_change_refuse_and_verify_is_in_the_events(home):
    pft("budget", "release", "second")
    pft("budget", "release", "first")  # refused: it was charged
    pft("budget", "verify")
    path = home / "home" / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == [
        "block_created",
        "block_created",
        "returned",
        "refused",
        "verified",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_refused_training_and_a_move_are_in_the_events(home):
    job = next(home.glob("job.yaml"))
    options = ["--set", "privacy.epsilon=400", "--json"]
    assert pft("train", job, *options).code == 3
    path = home / "home" / "events.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["event"], last["code"]) == ("refused", "budget-refused")


def test_replace_one_is_refused_and_the_ledger_stays_as_it_is(home):
    job = next(home.glob("job.yaml"))
    before = pft("budget", "history", "--json").json["entries"][0]
    option = ["--set", "privacy.relation=replace_one", "--json"]
    for verb in (("plan",), ("train",), ("budget", "create"), ("budget", "reserve")):
        answer = pft(*verb, job, *option)
        assert answer.code == 2
        assert answer.json["error"]["code"] == "bad-config"
    assert pft("budget", "history", "--json").json["entries"][0] == before
