"""Exports: whole, checked row by row, and compared with the ledger they came from."""

from __future__ import annotations

import json
import stat

import pytest

from pft_ray.errors import InputError, LedgerBehindError, VerificationError
from pft_ray.ledger.exports import check_export, write_export
from tests.ledger.builders import (
    add_blocks,
    live_through,
    make_full_ledger,
    open_ledger,
    start_run,
    where,
)


def cheap(_event, _delta):
    return 0.5


@pytest.fixture
def lived(ledger):
    live_through(ledger)
    return ledger


@pytest.fixture
def exported(lived, tmp_path):
    path = tmp_path / "out.jsonl"
    write_export(where(lived), path)
    return path


def rewrite(path, change):
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def test_an_export_holds_every_row_and_is_the_owners_alone(lived, exported):
    header, *rows = map(json.loads, exported.read_text().splitlines())
    assert header["root"] == lived.position().root
    assert len(rows) == header["num_entries"] == lived.position().sequence
    assert rows == [entry.to_dict() for entry in reversed(lived.history(1000))]
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="already"):
        write_export(where(lived), exported)


def test_it_stands_to_its_ledger_as_it_is(lived, exported):
    found = check_export(exported, where(lived), epsilon=cheap)
    assert found.relation == "same"
    assert [run.run_id for run in found.runs] == ["run"]
    start_run(lived, "later")
    found = check_export(exported, where(lived), epsilon=cheap)
    assert found.relation == "ledger has more"
    assert found.num_entries_ledger > found.num_entries
    assert check_export(exported, None, epsilon=cheap).relation == "no ledger"


def test_a_ledger_that_lost_rows_is_behind_its_export(tmp_path):
    path = make_full_ledger(tmp_path)
    copy = tmp_path / "old.db"
    copy.write_bytes(path.read_bytes())
    with open_ledger(tmp_path) as opened:
        start_run(opened, "later")
    write_export(path, tmp_path / "out.jsonl")
    with pytest.raises(LedgerBehindError, match="lost rows") as caught:
        check_export(tmp_path / "out.jsonl", copy, epsilon=cheap)
    assert caught.value.exit_code == 4


def test_another_ledger_and_another_history_are_refused(tmp_path):
    path = make_full_ledger(tmp_path)
    write_export(path, tmp_path / "out.jsonl")
    (tmp_path / "other").mkdir()
    other = make_full_ledger(tmp_path / "other")
    with pytest.raises(VerificationError, match="another ledger"):
        check_export(tmp_path / "out.jsonl", other, epsilon=cheap)
    fork = tmp_path / "fork"
    fork.mkdir()
    (fork / "ledger.db").write_bytes(path.read_bytes())
    for folder, run_id in ((tmp_path, "one"), (fork, "two")):
        with open_ledger(folder) as opened:
            start_run(opened, run_id)
    write_export(path, tmp_path / "newer.jsonl")
    with pytest.raises(VerificationError, match="another history"):
        check_export(tmp_path / "newer.jsonl", fork / "ledger.db", epsilon=cheap)


@pytest.mark.parametrize("row", [1, 3, 5, -1])
def test_any_altered_row_is_named(exported, row):
    def change(lines):
        data = json.loads(lines[row])
        body = data["body"]
        name = next(k for k, v in sorted(body.items()) if isinstance(v, str | int))
        body[name] = body[name] + (1 if isinstance(body[name], int) else "x")
        lines[row] = json.dumps(data)

    rewrite(exported, change)
    with pytest.raises(VerificationError) as caught:
        check_export(exported, None, epsilon=cheap)
    count = len(exported.read_text().splitlines()) - 1
    assert caught.value.details["row"] == (row if row > 0 else count)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines.pop(),
        lambda lines: lines.pop(4),
        lambda lines: lines.insert(5, lines[4]),
        lambda lines: lines.__setitem__(2, "{}"),
        lambda lines: lines.__setitem__(2, "no json"),
        lambda lines: lines.__delitem__(slice(1, None)),
    ],
)
def test_missing_repeated_and_broken_rows_are_refused(exported, change):
    rewrite(exported, change)
    with pytest.raises(VerificationError):
        check_export(exported, None, epsilon=cheap)


@pytest.mark.parametrize("text", ["", "{}\n", "words\n", '{"format": "other"}\n'])
def test_what_is_no_export_is_bad_input(tmp_path, text):
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        check_export(path, None)
    assert caught.value.exit_code == 2


def test_a_newer_format_says_upgrade(exported):
    def change(lines):
        lines[0] = lines[0].replace("export/1", "export/2")

    rewrite(exported, change)
    with pytest.raises(InputError, match="another version"):
        check_export(exported, None)


def test_a_run_that_costs_more_than_its_envelope_is_found(exported):
    with pytest.raises(VerificationError, match="its training envelope"):
        check_export(exported, None, epsilon=lambda *_: 9.0)


def test_a_damaged_ledger_writes_no_export(tmp_path):
    path = make_full_ledger(tmp_path)
    data = bytearray(path.read_bytes())
    place = data.index(b'"reason":"start"')
    data[place + 11] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(VerificationError):
        write_export(path, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out.jsonl*"))
    with pytest.raises(InputError, match="no ledger"):
        write_export(tmp_path / "none.db", tmp_path / "out.jsonl")


def test_an_empty_ledger_with_blocks_alone_can_be_exported(empty_ledger, tmp_path):
    add_blocks(empty_ledger)
    write_export(where(empty_ledger), tmp_path / "out.jsonl")
    found = check_export(tmp_path / "out.jsonl", where(empty_ledger))
    assert (found.relation, found.runs) == ("same", ())
