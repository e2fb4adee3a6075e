"""Entries of the ledger: their fields, their one byte form and their hash chain.

An entry's hash is SHA-256 over the previous hash, the sequence number, the kind and
the canonical JSON body, each with its length before it. The first entry (genesis)
carries the ledger's random id and the schema version, so two ledgers share no hash.

Entries hold public values, random tokens and keyed digests. Nothing in them can be
computed from private data without a key.
"""

from __future__ import annotations

import hashlib
import json
import operator
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from pft_ray.accounting.plan import canonical_json
from pft_ray.errors import InputError, VerificationError

SCHEMA_VERSION = 1
GENESIS_PREVIOUS = "0" * 64
_DOMAIN = b"pft-ray/ledger/1"
_LENGTH = struct.Struct(">Q")
_read_json = json.JSONDecoder().raw_decode
_MAX_LABEL = 200
_MAX_INTEGER = 2**63 - 1

_NOT_SHOWN = {"blind", "nonce", "commitment", "key_check", "plan_digest"}

Body = dict[str, Any]

# The exact fields of each kind. A bool is not an integer here.
_RUN = {"run_id": str, "epoch": int}
_ASKED = {
    "run_id": str,
    "name": str,
    "plan": dict,
    "plan_digest": str,
    "envelopes": list,
    "blind": str,
}
FIELDS: dict[str, dict[str, type[Any]]] = {
    "genesis": {"ledger_id": str, "schema": int},
    "dataset": {
        "name": str,
        "public": bool,
        "namespaces": list,
        "commitment": str,
        "key_check": str,
        "facts": dict,
    },
    "block": {
        "name": str,
        "dataset": str,
        "predicate": dict,
        "unit": str,
        "mode": str,
        "epsilon_units": int,
        "delta_units": int,
    },
    "filter_block": {
        "name": str,
        "dataset": str,
        "predicate": dict,
        "unit": str,
        "epsilon_units": int,
        "delta_units": int,
        "order": int,
        "rho_units": int,
        "purposes": dict,
    },
    "move": {
        "block": str,
        "source": str,
        "target": str,
        "rho_units": int,
        "blind": str,
    },
    "reserve": dict(_ASKED),
    "joint_reserve": {"runs": list, "envelopes": list, "blind": str},
    "epoch": dict(_RUN),
    "attempt": {**_RUN, "attempt": int, "start": int, "reason": str},
    "grant": {
        **_RUN,
        "attempt": int,
        "start": int,
        "stop": int,
        "charged": int,
        "nonce": str,
    },
    "look": {**_RUN, "look": int, "position": str, "block": str},
    "release": {**_RUN, "look": int, "values": dict},
    "checkpoint": {**_RUN, "attempt": int, "step": int, "name": str},
    "end": {**_RUN, "status": str, "num_steps_released": int},
    "non_private": {"dataset": str, "block": str, "run": str},
    "release_reservation": {"run_id": str},
    # Kinds of the waiting queue. A time limit of 0 is none.
    "request": {**_ASKED, "time_limit_ms": int},
    "admit": {"run_id": str, "blind": str},
    "leave": {"run_id": str},
    "expire": {"run_id": str},
    "admission": {"order": str, "dpf_n": int},
}


class Position(NamedTuple):
    """A place in a chain: ``sequence`` counts from 1, ``root`` is the hash there."""

    sequence: int
    root: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One durable record.

    Attributes:
        sequence: Its place, from 1 (genesis).
        kind: One of the kinds of schema 1.
        body: Its fields.
        text: The canonical JSON of the body: the bytes that are hashed and stored.
        previous: Hash of the entry before it, hex.
        hash: Its own hash, hex.
    """

    sequence: int
    kind: str
    body: Body
    text: str
    previous: str
    hash: str

    @property
    def position(self) -> Position:
        """The position of the chain that ends with this entry."""
        return Position(self.sequence, self.hash)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry as JSON."""
        return {
            "sequence": self.sequence,
            "kind": self.kind,
            "body": self.body,
            "previous": self.previous,
            "hash": self.hash,
        }

    def summary(self) -> str:
        """Returns the short fields of the body on one line, for display."""
        return ", ".join(
            f"{name} {value}"
            for name, value in self.body.items()
            if isinstance(value, str | int) and name not in _NOT_SHOWN
        )


def entry_hash(previous: str, sequence: int, kind: str, text: str) -> str:
    """Returns the hash of an entry as hex (SHA-256, FIPS 180-4)."""
    before, name, body = previous.encode(), kind.encode(), text.encode()
    pack = _LENGTH.pack
    parts = (
        *(_DOMAIN, pack(len(before)), before, pack(8), pack(sequence)),
        *(pack(len(name)), name, pack(len(body)), body),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()


def make_entry(position: Position, kind: str, body: Body) -> Entry:
    """Returns the entry that follows ``position``.

    Raises:
        InputError: The body is not plain JSON (NaN and infinity are refused).
    """
    try:
        text = canonical_json(body).decode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A ledger entry of kind {kind!r} holds a value that JSON cannot.",
            "Give finite numbers, strings, lists and objects only.",
        ) from error
    sequence = position.sequence + 1
    return Entry(
        sequence=sequence,
        kind=kind,
        body=body,
        text=text,
        previous=position.root,
        hash=entry_hash(position.root, sequence, kind, text),
    )


def read_entry(row: tuple[Any, ...]) -> Entry:
    """Reads a stored row; whether it belongs where it is, is checked when applied.

    Args:
        row: (seq, kind, body, prev_hash, hash), the last four as bytes.

    Raises:
        VerificationError: The row holds no text or no JSON; the message names it.
    """
    sequence, kind, body, previous, stored = row
    try:
        text = body.decode()
        # What follows the value, if anything, is not canonical: check_link finds it.
        value, _ = _read_json(text)
        return Entry(
            sequence, kind.decode(), value, text, previous.decode(), stored.decode()
        )
    except (AttributeError, ValueError, RecursionError):
        raise bad_row(sequence, "was altered: it is not text and JSON") from None


def check_link(entry: Entry, position: Position) -> None:
    """Checks that an entry is whole and follows ``position``.

    Raises:
        VerificationError: It is missing, moved, altered or not canonical; the message
            names the row.
    """
    expected = position.sequence + 1
    if entry.sequence != expected:
        raise bad_row(expected, f"is missing: the next one is row {entry.sequence}")
    wanted = entry_hash(entry.previous, entry.sequence, entry.kind, entry.text)
    if entry.hash != wanted:
        raise bad_row(entry.sequence, "was altered: its content does not give its hash")
    if entry.previous != position.root:
        raise bad_row(entry.sequence, "does not follow the row before it")
    try:
        is_canonical = canonical_json(entry.body).decode() == entry.text
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise bad_row(entry.sequence, "is not in canonical form")


def bad_row(sequence: int, what: str) -> VerificationError:
    """Returns the error that names a row of the ledger."""
    return VerificationError(
        f"Ledger row {sequence} {what}.",
        "Restore the ledger from a copy that verifies.",
        {"row": sequence},
    )


def check_fields(kind: str, body: Any) -> None:
    """Checks that a body has exactly the fields of its kind, with their types.

    Raises:
        InputError: Unknown kind, or a field missing, extra, of a wrong type, negative.
    """
    fields = FIELDS.get(kind)
    if fields is None:
        raise InputError(
            f"Unknown ledger entry kind {kind!r}.",
            "A newer pft_ray wrote it: upgrade, nothing runs on an unknown entry.",
        )
    if not isinstance(body, dict) or body.keys() != fields.keys():
        raise InputError(f"A ledger entry of kind {kind!r} has wrong fields.")
    for name, wanted in fields.items():
        value: Any = body[name]
        if type(value) is not wanted or (wanted is int and value < 0):
            raise InputError(f"Field {name!r} of a {kind!r} entry is not usable.")


def natural(value: int, name: str) -> int:
    """Returns a plain int from 0 up; refuses bools, fractions and negatives."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not 0 <= number <= _MAX_INTEGER:
        raise InputError(f"{name} is {value!r}.", f"Give {name} as an integer >= 0.")
    return number


def label(value: Any, name: str) -> str:
    """Returns a name that can be printed: 1 to 200 characters, no outer spaces."""
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or value != value.strip()
        or not 1 <= len(value) <= _MAX_LABEL
    ):
        raise InputError(
            f"{name} is not a usable name.",
            f"Give {name} 1 to {_MAX_LABEL} printable characters.",
        )
    return value
