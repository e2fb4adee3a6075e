"""Verification names the first bad row or the page, and prices runs anew."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from pft_ray.errors import (
    InputError,
    LedgerError,
    VerificationError,
)
from pft_ray.ledger import Ledger, Position
from pft_ray.ledger.entries import make_entry
from tests.ledger.builders import (
    TRAIN,
    add_blocks,
    make_envelopes,
    make_plan,
    nonce,
    num_rows,
    open_ledger,
    raw,
    start_run,
)
from tests.ledger.verifying import COMPLETENESS, check, rows_of

# -- a sound ledger -----------------------------------------------------------------


def test_a_sound_ledger_verifies(full):
    result = check(full)
    assert result.words == COMPLETENESS
    assert result.num_entries == num_rows(full)
    assert result.root == rows_of(full)[-1][4]
    (run,) = result.runs
    assert (run.run_id, run.num_steps_charged, run.num_steps_max) == ("run", 10, 25)
    assert json.dumps(result.to_dict())


def test_an_open_ledger_verifies_with_what_others_append(tmp_path):
    with open_ledger(tmp_path) as ledger, open_ledger(tmp_path) as other:
        add_blocks(ledger)
        start_run(other)
        assert check(ledger).num_entries == other.position().sequence


def test_verification_changes_no_byte(full):
    before = full.read_bytes()
    check(full)
    assert full.read_bytes() == before


def test_needs_a_file(tmp_path):
    with pytest.raises(InputError):
        check(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused_and_not_called_damage(full):
    raw(full, "UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    with pytest.raises(LedgerError, match="schema 2"):
        check(full)


# -- rows ---------------------------------------------------------------------------


def test_a_flipped_byte_in_any_row_names_the_row(full, tmp_path):
    data, copy = full.read_bytes(), tmp_path / "copy.db"
    for sequence, kind, body, _, own in rows_of(full):
        record = data.index(f"{kind}{body}".encode())
        for start, length in (
            (record, len(kind + body)),
            (data.index(own.encode()), 64),
        ):
            for offset in (start, start + length // 2, start + length - 1):
                changed = bytearray(data)
                changed[offset] ^= 1
                copy.write_bytes(changed)
                with pytest.raises(VerificationError, match="row") as caught:
                    check(copy)
                named = caught.value.details["row"]
                # A hash lies in its own row and in the next one's link to it.
                assert named in (sequence, sequence + 1), (sequence, caught.value)
                with pytest.raises(VerificationError):
                    Ledger.open(copy)


def test_a_changed_body_with_a_good_looking_hash_is_caught_by_the_next_row(full):
    """Someone who recomputes one hash has to recompute all that follow."""
    from pft_ray.ledger.entries import entry_hash

    sequence, kind, body, previous, _ = rows_of(full)[5]
    forged = body.replace('"epsilon_units":1000000000', '"epsilon_units":1')
    forged = forged if forged != body else body.replace('"epoch":1', '"epoch":2')
    own = entry_hash(previous, sequence, kind, forged)
    raw(
        full,
        f"UPDATE entries SET body = '{forged}', hash = '{own}' WHERE seq = {sequence}",
    )
    with pytest.raises(VerificationError) as caught:
        check(full)
    assert caught.value.details["row"] in (sequence, sequence + 1)


@pytest.mark.parametrize("removed", [1, 2, 7, 12])
def test_a_removed_row_is_named(full, removed):
    raw(full, f"DELETE FROM entries WHERE seq = {removed}")
    with pytest.raises(VerificationError, match=f"row {removed} is missing") as caught:
        check(full)
    assert caught.value.details["row"] == removed
    assert caught.value.exit_code == 4


def test_a_removed_row_is_named_when_later_ones_move_up(full):
    raw(
        full,
        "DELETE FROM entries WHERE seq = 7",
        *(f"UPDATE entries SET seq = {s - 1} WHERE seq = {s}" for s in range(8, 17)),
    )
    with pytest.raises(VerificationError, match="row 7"):
        check(full)


def test_reordered_rows_are_named(full):
    raw(
        full,
        "UPDATE entries SET seq = -1 WHERE seq = 8",
        "UPDATE entries SET seq = 8 WHERE seq = 9",
        "UPDATE entries SET seq = 9 WHERE seq = -1",
    )
    with pytest.raises(VerificationError, match="row 8"):
        check(full)


def test_a_repeated_row_is_named(full):
    last = num_rows(full)
    raw(
        full,
        f"INSERT INTO entries SELECT {last + 1}, kind, body, prev_hash, hash "
        "FROM entries WHERE seq = 10",
    )
    with pytest.raises(VerificationError, match=f"row {last + 1}"):
        check(full)


def test_an_emptied_ledger_does_not_verify(full):
    raw(full, "DELETE FROM entries")
    with pytest.raises(VerificationError, match="row 1 is missing"):
        check(full)


def append_forged(path, *bodies):
    """Appends rows with right hashes: a valid chain that breaks the rules."""
    sequence, *_, root = rows_of(path)[-1]
    position = Position(sequence, root)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for kind, body in bodies:
            entry = make_entry(position, kind, body)
            position = entry.position
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                (entry.sequence, kind, entry.text, entry.previous, entry.hash),
            )
    return position.sequence


def reserve_body(plan, envelopes, **changes):
    return {
        "run_id": "forged",
        "name": "forged",
        "plan": plan.to_dict(),
        "plan_digest": plan.digest,
        "envelopes": [envelope.to_dict() for envelope in envelopes],
        "blind": "0" * 32,
        **changes,
    }


def test_rows_that_break_a_rule_are_named_though_their_hashes_are_right(full, tmp_path):
    plan = make_plan()
    good = make_envelopes(plan, 0.5)
    grant = {
        "run_id": "run",
        "epoch": 2,
        "attempt": 2,
        "start": 10,
        "stop": 11,
        "charged": 11,
        "nonce": nonce(99),
    }
    cases = {
        "over budget": ("reserve", reserve_body(plan, make_envelopes(plan, 2.1))),
        "digest": ("reserve", reserve_body(plan, good, plan_digest="0" * 64)),
        "plan": ("reserve", reserve_body(plan, good) | {"plan": {"version": 1}}),
        "used id": ("reserve", reserve_body(plan, good, run_id="run")),
        "ended run": ("grant", grant),
        "genesis": ("genesis", {"ledger_id": "0" * 32, "schema": 1}),
        "fields": ("epoch", {"run_id": "run"}),
        "more fields": ("epoch", {"run_id": "run", "epoch": 3, "x": 1}),
        "bool": ("epoch", {"run_id": "run", "epoch": True}),
        "negative": ("epoch", {"run_id": "run", "epoch": -1}),
    }
    for name, (kind, body) in cases.items():
        path = tmp_path / f"{name}.db"
        shutil.copy(full, path)
        row = append_forged(path, (kind, body))
        with pytest.raises(VerificationError, match=f"row {row} breaks a rule"):
            check(path)
        with pytest.raises(VerificationError, match=f"row {row} breaks a rule"):
            Ledger.open(path)


def test_a_grant_that_understates_the_charge_is_named(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
        path = ledger.path
    body = {
        "run_id": "run",
        "epoch": epoch,
        "attempt": attempt,
        "start": 4,
        "stop": 8,
        "charged": 4,
        "nonce": nonce(1),
    }
    row = append_forged(path, ("grant", body))
    with pytest.raises(VerificationError, match=f"row {row}"):
        check(path)


def test_forged_rows_of_a_running_run_are_named(tmp_path):
    """Right hashes, wrong numbers: what no honest ledger would append."""
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        ledger.charge_look("run", epoch, "now")
        known = ledger.dataset("mail")
        path = ledger.path
    run = {"run_id": "run", "epoch": epoch}
    dataset = {
        "name": "new",
        "public": False,
        "namespaces": ["record"],
        "commitment": "0" * 32,
        "key_check": known.key_check,
        "facts": {},
    }
    block = {
        "name": "new",
        "dataset": "mail",
        "predicate": {"kind": "all"},
        "unit": "record",
        "mode": "plan",
        "epsilon_units": 1,
        "delta_units": 1,
    }
    cases = [
        ("epoch", {**run, "epoch": epoch}),
        ("epoch", {**run, "epoch": epoch + 2}),
        ("attempt", {**run, "attempt": attempt + 2, "start": 0, "reason": "x"}),
        ("attempt", {**run, "attempt": attempt, "start": 0, "reason": "x"}),
        ("attempt", {**run, "attempt": attempt + 1, "start": 21, "reason": "x"}),
        ("look", {**run, "look": 2, "position": "x", "block": "mail-validation"}),
        ("look", {**run, "look": 0, "position": "x", "block": "mail-validation"}),
        ("look", {**run, "look": 1, "position": "x", "block": TRAIN}),
        ("dataset", {**dataset, "key_check": "0" * 32}),
        ("dataset", {**dataset, "commitment": "0"}),
        ("dataset", {**dataset, "namespaces": ["b", "a"]}),
        ("dataset", {**dataset, "namespaces": []}),
        ("dataset", {**dataset, "name": "mail"}),
        ("block", {**block, "mode": "filter"}),
        ("block", {**block, "epsilon_units": 0}),
        ("block", {**block, "delta_units": 10**18}),
        ("block", {**block, "name": TRAIN}),
        ("non_private", {"dataset": "mail", "block": TRAIN, "run": "run"}),
    ]
    for number, (kind, body) in enumerate(cases):
        copy = shutil.copy(path, tmp_path / f"{number}.db")
        row = append_forged(copy, (kind, body))
        with pytest.raises(VerificationError, match=f"row {row} breaks a rule"):
            Ledger.open(copy)
    honest = [("epoch", {**run, "epoch": epoch + 1}), ("dataset", dataset)]
    append_forged(path, *honest, ("block", block))
    Ledger.open(path).close()


def test_a_row_of_another_branch_is_named(full):
    """Its own hash is right; what it follows is not what is there."""
    last = rows_of(full)[-1]
    entry = make_entry(Position(last[0], "0" * 64), "epoch", {"run_id": "run"})
    with closing(sqlite3.connect(full, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (entry.sequence, entry.kind, entry.text, entry.previous, entry.hash),
        )
    with pytest.raises(VerificationError, match="does not follow"):
        check(full)


def test_the_hash_of_a_row_is_the_one_of_schema_1(full):
    """Computed here by hand: ledgers written today have to verify for ever."""
    previous = "0" * 64
    for sequence, kind, body, link, own in rows_of(full):
        parts = (
            previous.encode(),
            sequence.to_bytes(8, "big"),
            kind.encode(),
            body.encode(),
        )
        message = b"pft-ray/ledger/1"
        for part in parts:
            message += len(part).to_bytes(8, "big") + part
        assert link == previous
        assert own == hashlib.sha256(message).hexdigest()
        previous = own


def test_a_body_that_is_not_canonical_is_named(full):
    from pft_ray.ledger.entries import entry_hash

    sequence, *_, root = rows_of(full)[-1]
    text = '{"run_id": "run"}'
    own = entry_hash(root, sequence + 1, "release_reservation", text)
    with closing(sqlite3.connect(full, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (sequence + 1, "release_reservation", text, root, own),
        )
    with pytest.raises(VerificationError, match="canonical"):
        check(full)


def test_no_byte_of_a_rows_page_can_change_what_is_read_unnoticed(full, tmp_path):
    """Flips bytes all over the pages that hold entries, free space left out.

    SQLite ignores one byte of each row: the place of the sequence number in the
    record, because the number is the row's own address.
    """
    data, copy = full.read_bytes(), tmp_path / "copy.db"
    rows, flips, ignored = rows_of(full), 0, 0
    for page, used in entry_pages(data):
        for offset in used[::11]:
            changed = bytearray(data)
            changed[(page - 1) * 4096 + offset] ^= 1 << (offset % 8)
            copy.write_bytes(changed)
            flips += 1
            if (place := damage_of(copy)) is None:
                assert rows_of(copy) == rows
                ignored += 1
            else:
                assert place.get("row") or place.get("page") == page, place
    assert flips > 200
    assert ignored <= len(rows)


@pytest.mark.parametrize("index", [0, 5, 11])
def test_a_text_that_became_bytes_names_its_row(full, index):
    """The last bit of a length in the row's header: the content stays the same."""
    data = bytearray(full.read_bytes())
    sequence, kind, body, _, _ = rows_of(full)[index]
    # Before the values: one length each of body (its last byte) and of two hashes.
    data[data.index(f"{kind}{body}".encode()) - 5] ^= 1
    full.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        check(full)
    assert caught.value.details["row"] == sequence


def damage_of(path):
    """What verification says about the place of damage; None when it finds none."""
    try:
        check(path)
    except VerificationError as error:
        return error.details
    return None


def entry_pages(data):
    """Yields (page number, offsets in use) of the leaves of the entries table.

    SQLite file format, section 1.6: page type 13 is a table leaf; its header has 8
    bytes: first free block, number of cells, start of the cell area, fragments.
    """
    for page in range(2, len(data) // 4096 + 1):
        content = data[(page - 1) * 4096 : page * 4096]
        if content[0] != 13:
            continue
        free, cells, start = (
            int.from_bytes(content[i : i + 2], "big") for i in (1, 3, 5)
        )
        assert free == 0
        yield page, [*range(1 + 2, 8 + 2 * cells), *range(start, 4096)]


@pytest.mark.parametrize("offset", [0, 7, 15, 16, 19])
def test_a_broken_header_is_page_one(full, offset):
    data = bytearray(full.read_bytes())
    data[offset] ^= 0x55
    full.write_bytes(data)
    with pytest.raises(VerificationError, match="page 1"):
        check(full)


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_every_broken_page_is_named(full, tmp_path, offset):
    """Kind of page, number of cells, first pointer: of each table's pages."""
    data, copy = full.read_bytes(), tmp_path / "copy.db"
    for page in range(2, len(data) // 4096 + 1):
        changed = bytearray(data)
        changed[(page - 1) * 4096 + offset] ^= 0xF0
        copy.write_bytes(changed)
        with pytest.raises(VerificationError) as caught:
            check(copy)
        assert caught.value.details["page"] == page, caught.value


def test_a_broken_page_stops_the_ledger(full):
    data = bytearray(full.read_bytes())
    page = next(page for page, _ in entry_pages(data))
    data[(page - 1) * 4096] = 99
    full.write_bytes(data)
    with pytest.raises(VerificationError):
        Ledger.open(full)


def test_a_cut_file_does_not_verify(full):
    data = full.read_bytes()
    full.write_bytes(data[:-4096])
    with pytest.raises(VerificationError):
        check(full)


def test_an_id_that_was_changed_beside_the_chain_is_caught(full):
    raw(full, f"UPDATE meta SET value = '{'0' * 32}' WHERE key = 'ledger_id'")
    with pytest.raises(VerificationError, match="another ledger"):
        check(full)
    with pytest.raises(VerificationError, match="another ledger"):
        Ledger.open(full)


@pytest.mark.parametrize("value", ["", "x", "-1", "one"])
def test_a_version_that_cannot_be_read_is_damage(full, value):
    raw(full, f"UPDATE meta SET value = '{value}' WHERE key = 'schema_version'")
    with pytest.raises(VerificationError, match="meta"):
        check(full)
