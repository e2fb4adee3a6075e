"""Bodies have exactly the fields of their kind, in exactly their types."""

from __future__ import annotations

import pytest

from pft_ray.errors import InputError, VerificationError
from pft_ray.ledger import LedgerState, Position, apply
from pft_ray.ledger.entries import (
    FIELDS,
    check_fields,
    entry_hash,
    make_entry,
    read_entry,
)
from pft_ray.ledger.state import _RULES

GOOD = {"run_id": "run", "epoch": 1, "attempt": 1, "step": 4, "name": "step-4"}
GENESIS = {"ledger_id": "0" * 32, "schema": 1}


def test_accepts_the_exact_fields():
    check_fields("checkpoint", GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": True},
        {"epoch": -1},
        {"epoch": 1.0},
        {"epoch": "1"},
        {"epoch": None},
        {"run_id": 5},
        {"name": None},
    ],
)
def test_refuses_another_type_or_sign(change):
    with pytest.raises(InputError, match="not usable"):
        check_fields("checkpoint", {**GOOD, **change})


@pytest.mark.parametrize("body", [{}, {**GOOD, "more": 1}, [], "text", None, 3])
def test_refuses_other_fields(body):
    with pytest.raises(InputError, match="wrong fields"):
        check_fields("checkpoint", body)


def test_refuses_an_unknown_kind():
    with pytest.raises(InputError, match="Unknown"):
        check_fields("refund", {})


def test_every_kind_has_its_rule():
    assert set(FIELDS) == set(_RULES)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"x", object()])
def test_an_entry_is_plain_json(value):
    with pytest.raises(InputError, match="JSON"):
        make_entry(Position(0, "0" * 64), "genesis", {"x": value})


def test_the_first_entry_is_genesis_and_comes_once():
    state = LedgerState()
    with pytest.raises(InputError, match="first entry"):
        apply(state, make_entry(state.position, "epoch", {"run_id": "r", "epoch": 1}))
    assert state == LedgerState()
    apply(state, make_entry(state.position, "genesis", GENESIS))
    assert state.position.sequence == 1
    with pytest.raises(InputError, match="second genesis"):
        apply(state, make_entry(state.position, "genesis", GENESIS))


def test_refuses_a_genesis_of_another_schema():
    with pytest.raises(InputError, match="schema 2"):
        apply(
            LedgerState(),
            make_entry(Position(0, "0" * 64), "genesis", {**GENESIS, "schema": 2}),
        )


@pytest.mark.parametrize(
    "row",
    [
        (1, b"genesis", b"{", b"0", b"0"),
        (1, b"genesis", b"\xff", b"0", b"0"),
        (1, b"genesis", None, b"0", b"0"),
        (1, b"genesis", b"[" * 100_000, b"0", b"0"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row):
    with pytest.raises(VerificationError, match="row 1") as caught:
        read_entry(row)
    assert caught.value.details == {"row": 1}


@pytest.mark.parametrize("text", ['{"schema":NaN}', '{"a":1,"a":1}', '{"a": 1}'])
def test_text_that_json_reads_but_the_ledger_never_writes_is_refused(text):
    """NaN, repeated keys, spaces: two readers could see two ledgers."""
    previous = "0" * 64
    own = entry_hash(previous, 1, "genesis", text)
    entry = read_entry((1, b"genesis", text.encode(), previous.encode(), own.encode()))
    with pytest.raises(VerificationError, match="canonical"):
        apply(LedgerState(), entry)
