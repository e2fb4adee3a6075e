"""`pft budget verify` on ledgers that were damaged, shortened or exchanged."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pft_ray.config import build_job, load_job
from pft_ray.ledger import Ledger, write_anchor
from pft_ray.ledger.home import keys_dir, ledger_location
from tests.e2e.refusals import Bench, pft
from tests.ledger.builders import num_rows

NUM_ROWS = 13


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """A home whose ledger holds one whole run, and the runs' folder beside it."""
    folder = tmp_path_factory.mktemp("lived")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFT_HOME", str(folder / "home"))
        bench = Bench(folder)
        assert pft("budget", "create", bench.job).code == 0
        built = build_job(load_job(bench.job), folder)
        with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
            ledger.reserve("run-1", built.plan, built.envelopes)
            epoch = ledger.take_epoch("run-1")
            attempt = ledger.open_attempt("run-1", epoch, 0, "start")
            for start in (0, 2, 4):
                nonce = f"{start:032x}"
                ledger.charge_steps("run-1", epoch, attempt, start, start + 2, nonce)
            ledger.record_checkpoint("run-1", epoch, attempt, 6, "step-6")
            ledger.charge_look("run-1", epoch, "step-6")
            ledger.end_run("run-1", epoch, "interrupted", 6)
            runs = folder / "runs"
            write_anchor(runs / "anchor.json", ledger.ledger_id, ledger.position())
            reserved = ledger.reservation_position("run-1")
        (run,) = pft("budget", "verify", "--runs", runs, "--json").json["runs"]
    report = {
        "run_id": "run-1",
        "epsilon": run["epsilon"],
        "delta": run["delta"],
        "ledger": {"sequence": reserved.sequence, "root": reserved.root},
        **run["stated"],
    }
    (runs / "run-1").mkdir()
    (runs / "run-1" / "report.json").write_text(json.dumps(report))
    return folder


def raw(path, *statements):
    """Runs SQL as somebody with the file would: what protects rows is dropped."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type='trigger'")
        for (name,) in names.fetchall():
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)


@pytest.fixture
def ledger(lived, tmp_path, monkeypatch):
    """A copy of that home, as the current one; returns the ledger's file."""
    for name in ("home", "runs"):
        shutil.copytree(lived / name, tmp_path / name)
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "home" / "ledger.db"
    assert num_rows(path) == NUM_ROWS
    return path


def refused(*options, code=4):
    """The error that verify ends with, through --json and in words."""
    answer = pft("budget", "verify", *options, "--json")
    assert answer.code == code, answer.out
    error = answer.json["error"]
    plain = pft("budget", "verify", *options)
    assert (plain.code, plain.out) == (code, "")
    assert error["message"] in plain.err
    assert "Traceback" not in plain.err
    return error


def test_a_whole_ledger_verifies_and_is_priced_anew(ledger):
    answer = pft("budget", "verify", "--json")
    assert answer.code == 0
    result = answer.json
    assert result["num_entries"] == NUM_ROWS
    assert result["fingerprints_checked"] is True
    assert result["num_reports_checked"] == 1
    assert "complete up to row 13 (anchor file anchor.json)" in result["words"]
    (run,) = result["runs"]
    assert (run["run_id"], run["num_steps_charged"]) == ("run-1", 6)
    assert 7.9 < run["epsilon"] <= run["envelope"] == 8
    plain = pft("budget", "verify")
    assert "run run-1: 6 of 22 steps paid, epsilon" in plain.out


@pytest.mark.parametrize("row", range(1, NUM_ROWS + 1))
def test_one_changed_byte_in_a_row_is_named(ledger, row):
    """The last letter of a row's text is another one, written past SQLite."""
    with closing(sqlite3.connect(ledger)) as database:
        (text,) = database.execute(
            "SELECT body FROM entries WHERE seq = ?", (row,)
        ).fetchone()
    content = ledger.read_bytes()
    body = text.encode()
    assert content.count(body) == 1
    place = content.index(body) + len(body) - 4
    flipped = bytes([content[place] ^ 1])
    ledger.write_bytes(content[:place] + flipped + content[place + 1 :])
    error = refused()
    assert error["details"]["row"] == row
    assert f"row {row}" in error["message"]
    assert error["fix"]


@pytest.mark.parametrize("column", ["hash", "prev_hash", "kind"])
def test_a_changed_column_is_named(ledger, column):
    raw(ledger, f"UPDATE entries SET {column} = 'x' || {column} WHERE seq = 7")
    assert refused()["details"]["row"] == 7


def test_a_fault_in_the_structure_of_the_file_names_its_page(ledger):
    content = bytearray(ledger.read_bytes())
    content[4096] ^= 0xFF  # the first byte of the second page: its type
    ledger.write_bytes(bytes(content))
    error = refused()
    assert error["details"]["page"] == 2
    assert "page 2" in error["message"]


def test_a_file_cut_in_the_middle_does_not_verify(ledger):
    content = ledger.read_bytes()
    ledger.write_bytes(content[: len(content) // 2])
    error = refused()
    assert error["code"] == "verification-failed"
    assert "page" in error["message"]


@pytest.mark.parametrize("row", [2, 6, 12])
def test_a_removed_row_is_noticed_at_its_place(ledger, row):
    raw(ledger, f"DELETE FROM entries WHERE seq = {row}")
    assert refused()["details"]["row"] in (row, row + 1)


def test_exchanged_rows_are_noticed(ledger):
    raw(
        ledger,
        "UPDATE entries SET seq = -1 WHERE seq = 8",
        "UPDATE entries SET seq = 8 WHERE seq = 9",
        "UPDATE entries SET seq = 9 WHERE seq = -1",
    )
    assert refused()["details"]["row"] == 8


@pytest.mark.parametrize("keep", [12, 10, 5])
def test_a_lost_tail_is_noticed_by_the_anchor(ledger, keep):
    raw(ledger, f"DELETE FROM entries WHERE seq > {keep}")
    error = refused()
    assert error["code"] == "ledger-behind"
    assert f"ends at row {keep}" in error["message"]
    assert "saw row 13" in error["message"]


def test_a_lost_tail_without_any_anchor_is_not_proven(ledger):
    raw(ledger, "DELETE FROM entries WHERE seq > 10")
    shutil.rmtree("runs")
    answer = pft("budget", "verify", "--json")
    assert answer.code == 0
    assert answer.json["words"] == "valid prefix, completeness not proven"
    assert answer.json["num_entries"] == 10


def test_a_lost_reservation_is_noticed_by_a_report_alone(ledger):
    Path("runs/anchor.json").unlink()
    raw(ledger, "DELETE FROM entries WHERE seq > 4")
    error = refused()
    assert error["code"] == "ledger-behind"
    assert "report.json of run-1 saw reservation 1" in error["message"]


def test_anchors_can_lie_elsewhere(ledger, tmp_path):
    Path("runs").rename("elsewhere")
    raw(ledger, "DELETE FROM entries WHERE seq = 13")
    assert pft("budget", "verify").code == 0
    assert refused("--runs", "elsewhere")["code"] == "ledger-behind"


def test_another_ledger_or_history_in_its_place_is_noticed(ledger, lived):
    anchor = json.loads(Path("runs/anchor.json").read_text())
    Path("runs/anchor.json").write_text(json.dumps(anchor | {"root": "0" * 64}))
    assert "another history at row 13" in refused()["message"]
    Path("runs/anchor.json").write_text(json.dumps(anchor | {"ledger_id": "0" * 32}))
    assert "belongs to ledger 000" in refused()["message"]
    Path("runs/anchor.json").write_text("{")
    assert "anchor file" in refused()["message"]


def test_a_changed_or_lost_fingerprint_is_noticed(ledger):
    raw(
        ledger,
        "UPDATE fingerprints SET digest = randomblob(16) WHERE digest = "
        "(SELECT min(digest) FROM fingerprints)",
    )
    error = refused()
    assert "fingerprints of data set 'tiny-data'" in error["message"]
    raw(ledger, "DELETE FROM fingerprints")
    assert "fingerprints" in refused()["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 2.0},
        {"epsilon": "8"},
        {"delta": 1e-9},
        {"unit": "user"},
        {"relation_domain": "prepared"},
        {"noise_multiplier": 4.0},
        {"sample_rate": 0.01},
        {"num_steps_max": 16},
        {"plan_digest": "0" * 64},
        {"run_id": "run-2"},
    ],
    ids=lambda change: "-".join(change),
)
def test_an_edited_report_is_noticed(ledger, change):
    path = Path("runs/run-1/report.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "report.json of run-1" in refused()["message"]


def test_a_changed_id_is_noticed(ledger):
    raw(ledger, "UPDATE meta SET value = hex(zeroblob(16)) WHERE key = 'ledger_id'")
    assert "another ledger than its first row" in refused()["message"]


def test_training_stops_on_a_ledger_that_lost_its_tail(ledger, lived):
    """No ledger, no step: what verify finds, train and dry runs find too."""
    for name in ("model", "data.csv", "job.yaml"):
        (Path.cwd() / name).symlink_to(lived / name)
    raw(ledger, "DELETE FROM entries WHERE seq > 10")
    answer = pft("train", "job.yaml", "--dry-run", "--json")
    assert answer.code == 4
    assert answer.json["error"]["code"] == "ledger-behind"
