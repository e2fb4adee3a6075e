"""Budgets, blocks and ledgers that do not allow what is asked."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pft_ray.ledger import BlockSpec, Ledger
from pft_ray.ledger.home import keys_dir, ledger_location
from tests.e2e.refusals import Bench, pft
from tests.tiny_job import make_rows

AMOUNTS = {
    "no-runs": (["--runs", 0], "--runs is 0", "at least 1"),
    "negative-runs": (["--runs", -3], "--runs is -3", "at least 1"),
    "delta-over-one": (["--runs", 200_000], "come to delta 2", "Lower --runs"),
    "runs-and-epsilon": (["--runs", 2, "--epsilon", 3], "together", "Give --runs, or"),
    "only-epsilon": (["--epsilon", 3], "belong together", "Give both"),
    "only-delta": (["--delta", 1e-5], "belong together", "Give both"),
    "zero": (["--epsilon", 0, "--delta", 1e-5], "epsilon is 0", "above zero"),
    "negative": (["--epsilon", -1, "--delta", 1e-5], "epsilon is -1", "above zero"),
    "nan": (["--epsilon", "nan", "--delta", 1e-5], "epsilon is nan", "finite"),
    "inf": (["--epsilon", "inf", "--delta", 1e-5], "epsilon is inf", "finite"),
    "subnormal": (["--epsilon", 5e-324, "--delta", 1e-5], "5e-324", "above zero"),
    "below-unit": (["--epsilon", 1e-12, "--delta", 1e-5], "unit of 1e-9", "more eps"),
    "delta-zero": (["--epsilon", 3, "--delta", 0], "delta is 0", "above zero"),
    "delta-one": (["--epsilon", 3, "--delta", 1], "delta is 1", "below 1"),
    "delta-nan": (["--epsilon", 3, "--delta", "nan"], "delta is nan", "finite"),
}


@pytest.mark.parametrize("case", AMOUNTS.values(), ids=AMOUNTS)
def test_amount_is_refused_and_nothing_is_registered(bench, case):
    options, says, fix = case
    job = bench.new_job(data__registration="fresh")
    bench.refused("budget", "create", job, *options, says=says, fix=fix)


def test_blocks_never_change(bench):
    bench.refused(
        "budget",
        "create",
        bench.job,
        "--runs",
        5,
        says="'tiny-data/train' exists with another epsilon, delta",
        fix="privacy.block",
    )
    job = bench.new_job(data__split={"salt": "2", "validation_fraction": 0.25})
    create = ["budget", "create", job, "--runs", 2]
    bench.refused(*create, says="exists with another predicate", fix="never changes")
    assert pft("budget", "create", bench.job, "--runs", 2).code == 0


def test_training_before_its_budget_is_refused(bench):
    job = bench.new_job(data__registration="never-made")
    error = bench.refused("train", job, says="never-made/train", fix="budget create")
    assert error["code"] == "unknown-block"
    job = bench.new_job(privacy__block="typo/train")
    bench.refused("train", job, says="'typo/train'", fix="budget create")


def test_budget_too_small_is_refused_with_its_own_code(bench):
    job = bench.new_job(privacy__epsilon=17)
    error = bench.refused(
        "train", job, says="16 .* left.* asks for 17", fix="budget create", code=3
    )
    assert error["code"] == "budget-refused"
    assert error["details"]["remaining_epsilon"] == 16
    job = bench.new_job(evaluation__epsilon=17)
    bench.refused(
        "train", job, says="tiny-data/validation.*17", fix="budget create", code=3
    )


SPLITS = {
    "salt": ({"data__split": {"salt": "2", "validation_fraction": 0.25}}, "salt"),
    "fraction": (
        {"data__split": {"salt": "1", "validation_fraction": 0.5}},
        "validation_fraction",
    ),
    "field": (
        {"data__split": {"salt": "1", "validation_fraction": 0.25, "field": "sender"}},
        "field",
    ),
    "roles-swapped": (
        {
            "privacy__block": "tiny-data/validation",
            "evaluation__block": "tiny-data/train",
        },
        "role",
    ),
}


@pytest.mark.parametrize("case", SPLITS.values(), ids=SPLITS)
def test_a_block_cut_by_another_rule_is_refused(bench, case):
    """Else records of one block would be charged to the other."""
    changes, differs = case
    bench.refused(
        "train",
        bench.new_job(**changes),
        says=f"cut otherwise .*{differs} differ",
        fix="split that the block was created with",
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A bench of its own, whose ledger may be changed."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path)
    assert pft("budget", "create", bench.job).code == 0
    return bench


def test_block_of_another_data_set_or_unit_is_refused(own):
    rows = own.new_rows(make_rows(200, shift=1000))
    other = own.new_job(data__path=rows, data__registration="other-data")
    assert pft("budget", "create", other).code == 0
    job = own.new_job(privacy__block="other-data/train")
    own.refused("train", job, says="cut from 'other-data'", fix="own registration")
    with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
        ledger.create_block(
            BlockSpec("people", "tiny-data", {"kind": "all"}, "user", 8.0, 1e-4)
        )
    job = own.new_job(privacy__block="people")
    own.refused("train", job, says="unit is record, .* is user", fix="plan's unit")


def test_lost_and_loose_keys_stop_everything(own):
    key = keys_dir() / "fingerprint.key"
    key.chmod(0o644)
    own.refused("train", own.job, says="read by other users", fix="chmod 600", code=1)
    key.chmod(0o600)
    content = key.read_bytes()
    key.write_bytes(bytes(32))
    own.refused("train", own.job, says="not the one", fix="Restore", code=1)
    own.refused("budget", "verify", says="not the one", fix="Restore", code=1)
    key.unlink()
    own.refused("train", own.job, says="key .* is missing", fix="Restore", code=1)
    # A ledger away from its key still verifies, and says what was left out.
    answer = pft("budget", "verify", "--json")
    assert answer.code == 0
    assert answer.json["fingerprints_checked"] is False
    key.write_bytes(content)
    key.chmod(0o600)
    assert pft("budget", "verify", "--json").json["fingerprints_checked"] is True


VERBS = {
    "train": ["train", "job.yaml"],
    "show": ["budget", "show"],
    "history": ["budget", "history"],
    "verify": ["budget", "verify"],
    "release": ["budget", "release", "run-1"],
    "runs": ["runs"],
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_ledger_that_is_not_there_is_never_made_on_the_way(bench, verb):
    bench.refused(*verb, "--ledger", "none.db", says="no ledger at", fix="another|mak")
    assert not Path("none.db").exists()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_places_that_are_no_ledger_are_refused(bench, verb):
    bench.refused(*verb, "--ledger", bench.folder, says="is a folder", fix="file in it")
    bench.refused(*verb, "--ledger", ":memory:", says="names no file", fix="durable")
    url = "mysql://host/db"
    bench.refused(*verb, "--ledger", url, says="mysql.* not supported", fix="path")


def test_files_that_are_no_ledger_are_refused(bench):
    text = bench.new_file("text.db", "not a database, whatever its name says " * 99)
    bench.refused(
        *VERBS["show"], "--ledger", text, says="not a database", fix="copy", code=4
    )
    bench.refused(
        *VERBS["verify"], "--ledger", text, says="page 1", fix="Restore", code=4
    )
    other = bench.folder / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    bench.refused(
        *VERBS["show"], "--ledger", other, says="is not a ledger", fix="place"
    )
    bench.refused(*VERBS["train"], "--ledger", other, says="not a ledger", fix="place")
    empty = bench.new_file("empty.db", "")
    bench.refused(*VERBS["show"], "--ledger", empty, says="not a ledger", fix="place")


def test_a_ledger_on_the_command_line_starts_from_the_current_folder(bench, tmp_path):
    """The job's own ledger.url starts from the job file, as its other paths do."""
    place = tmp_path / "here"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PFT_HOME", str(tmp_path / "home"))
        option = ["--ledger", "mine.db", "--json"]
        created = pft("budget", "create", bench.job, *option)
        assert created.json["ledger"] == str(place / "mine.db")
        assert len(pft("budget", "show", *option).json["blocks"]) == 2
        assert pft("plan", bench.job, *option).json["blocks"][0]["fits"] is True
        assert pft("train", bench.job, "--dry-run", *option).code == 0
        job = bench.new_job(ledger__url="own.db")
        created = pft("budget", "create", job, "--json")
        assert created.json["ledger"] == str(bench.folder / "own.db")
        assert pft("plan", job, "--json").json["blocks"][0]["fits"] is True


def test_a_ledger_of_a_newer_version_is_refused(own):
    with sqlite3.connect(ledger_location(None)) as database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    for verb in VERBS.values():
        answer = pft(*verb, "--json")
        error = answer.json["error"]
        assert (answer.code, error["code"]) == (2, "ledger-format")
        assert "has schema 2; this pft_ray reads 1" in error["message"]
        assert "Upgrade pft_ray" in error["fix"]


def test_questions_about_what_is_not_there_are_refused(bench):
    bench.refused("budget", "show", "typo/train", says="typo/train", fix=".")
    bench.refused("budget", "history", "--block", "typo", says="typo", fix=".")
    bench.refused("budget", "history", "--run", "typo", says="typo", fix=".")
    bench.refused("budget", "history", "--limit", 0, says="--limit is 0", fix="least 1")
    bench.refused("budget", "release", "typo", says="typo", fix=".")
    bench.refused("budget", "verify", "--runs", "typo", says="no folder", fix="output")


def test_a_reservation_is_given_back_once_and_never_after_a_charge(own):
    from pft_ray.config import build_job, load_job

    built = build_job(load_job(own.job), own.folder)
    with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
        ledger.reserve("first", built.plan, built.envelopes)
    shown = pft("budget", "show", "tiny-data/train", "--json").json["blocks"][0]
    assert (shown["remaining_epsilon"], shown["reserved_epsilon"]) == (0, 8)
    answer = pft("budget", "release", "first", "--json")
    assert answer.code == 0, answer.out
    assert answer.json["blocks"][0] == {"name": "tiny-data/train", "epsilon_left": 8}
    own.refused("budget", "release", "first", says="gave .* back already", fix="")
    with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
        ledger.reserve("second", built.plan, built.envelopes)
        epoch = ledger.take_epoch("second")
        attempt = ledger.open_attempt("second", epoch, 0, "start")
        ledger.charge_steps("second", epoch, attempt, 0, 1, "ab" * 16)
    own.refused(
        "budget", "release", "second", says="was charged", fix="never refunded", code=3
    )
