"""Identities of units: keyed digests that no other unit can change."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pft_ray.crypto import keyed_digest
from pft_ray.data.validate import Content, Fault, Record, content_of, key_text
from pft_ray.data.windows import moment_of
from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pft_ray.data.spec import DataSpec
    from pft_ray.data.table import RawTable

DIGEST_BYTES = 16


def record_namespace(spec: DataSpec) -> str:
    """Returns the namespace of record ids: the id column's, or the content's."""
    return f"record:{spec.id}" if spec.id is not None else "record/content"


def user_namespace(spec: DataSpec) -> str:
    """Returns the namespace of the user column's values."""
    return f"user:{spec.user}"


def split_namespace(spec: DataSpec) -> str:
    """Returns the namespace of (record, split value) pairs."""
    return f"split:{spec.split_column}"


def owner_namespace(spec: DataSpec) -> str:
    """Returns the namespace of (record, owner value) pairs."""
    return f"owner:{spec.owner}"


def window_namespace(spec: DataSpec) -> str:
    """Returns the namespace of (record, moment) pairs."""
    return f"window:{spec.window_column}"


def content_bytes(content: Content) -> bytes:
    """Returns the one byte form of a text or of messages."""
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def split_bytes(record: Record) -> bytes:
    """Returns the value that the split hashes for this record."""
    if record.split_value is not None:
        return record.split_value.encode()
    return content_bytes(record.content)


def unit_digests(
    records: list[Record], spec: DataSpec, fingerprint_key: bytes
) -> NDArray[np.uint8]:
    """Returns one 16-byte digest for each record.

    With an id column: the keyed digest of the id. Without: of everything that the
    job reads of the record (content, class, user, split, owner and moment) and of a
    copy number among records that are equal in all of it. Places in the file never
    enter.

    Args:
        records: Records of one file, both blocks together.
        spec: The job's data section.
        fingerprint_key: 32-byte key that is kept with the ledger.

    Returns:
        uint8 array (n, 16); rows are distinct when the ids are.

    Guarantee:
        Removing a record removes one digest and changes no other pair of (digest,
        record): equal records are interchangeable, so the highest copy number is the
        one that goes.
    """
    if spec.id is not None:
        name = record_namespace(spec).encode()
        rows = [
            keyed_digest(fingerprint_key, name, str(record.id).encode())
            for record in records
        ]
        return _digest_array(rows)
    rows = []
    copies: Counter[bytes] = Counter()
    for record in records:
        parts: list[Any] = [record.content, record.target]
        parts += [record.user, record.split_value]
        if spec.owner is not None:
            parts.append(record.owner_value)
        if spec.window_column is not None:
            parts.append(str(record.moment))
        raw = json.dumps(parts, ensure_ascii=True, separators=(",", ":")).encode()
        rows.append(
            keyed_digest(fingerprint_key, b"unit/content", raw, _copy(copies[raw]))
        )
        copies[raw] += 1
    return _digest_array(rows)


def check_ids(table: RawTable, spec: DataSpec) -> None:
    """Refuses an id column in which an id appears twice.

    Two records under one id would always be sampled together, and one would mark
    the other's presence. That ids are distinct is part of what the job declares, as
    that a file is parquet: the guarantee is about files that keep it, every file
    with one record less keeps it too, and only the operator sees the refusal.

    Raises:
        DataError: Names the column and two record numbers, never the id.
    """
    if spec.id is None:
        return
    first: dict[str, int] = {}
    for number, value in enumerate(table.columns[spec.id], start=1):
        key = key_text(value)
        if key is None:
            continue
        if key in first:
            raise DataError(
                f"Column {spec.id!r} of {table.source} gives records {first[key]} "
                f"and {number} the same id.",
                "Give every record an id of its own, or leave data.id out: ids then "
                "come from the content.",
                {"column": spec.id, "records": [first[key], number]},
            )
        first[key] = number


def registration_fingerprints(
    table: RawTable, spec: DataSpec, fingerprint_key: bytes
) -> dict[str, NDArray[np.uint8]]:
    """Returns the keyed fingerprints by which the ledger finds overlaps.

    They cover every record of the file that has an id (or content), dropped ones
    too, so that the job that reads it makes no difference. Without an id column a
    record is known by its text alone and a copy number, so a copy of the file under
    other column names or in another format is recognised.

    Args:
        table: What was read.
        spec: The job's data section.
        fingerprint_key: 32-byte key that is kept with the ledger, never exported.

    Returns:
        By namespace, sorted distinct rows of shape (n, 16): the records, the users
        when a user column is declared, and when another column than the id decides
        the block, the owner, or whether a record lies in a window, each record together
        with its value there.

    Guarantee:
        Two files with equal fingerprints put every record into the same block, for
        any salt and fraction: no record can be charged to one block of a split in
        one run and to the other block, which is taken to be disjoint, in the next.
        The same holds for the blocks of owners, for any rule, for those of windows,
        and for blocks that several of these columns decide together: without ids,
        records of one content are fingerprinted with all of their values at once, so
        that two of them cannot change a value with one another.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    name = record_namespace(spec)
    if spec.id is not None:
        found[name] = _fingerprints(name, table.columns[spec.id], fingerprint_key)
    else:
        found[name] = _content_fingerprints(name, table, spec, fingerprint_key)
    if spec.user is not None:
        name = user_namespace(spec)
        found[name] = _fingerprints(name, table.columns[spec.user], fingerprint_key)
    if spec.split_column not in (None, spec.id):
        name = split_namespace(spec)
        values = table.columns[str(spec.split_column)]
        found[name] = _pair_fingerprints(name, table, spec, values, fingerprint_key)
    if spec.owner not in (None, spec.id, spec.split_column):
        name = owner_namespace(spec)
        values = table.columns[str(spec.owner)]
        found[name] = _pair_fingerprints(name, table, spec, values, fingerprint_key)
    if spec.window_column is not None:
        name = window_namespace(spec)
        values = _deciding_value(
            spec, spec.window_column, table.columns[spec.window_column]
        )
        found[name] = _pair_fingerprints(name, table, spec, values, fingerprint_key)
    columns = deciding_columns(spec)
    if spec.id is None and len(columns) > 1:
        name = "together:" + "+".join(columns)
        joint = [_deciding_value(spec, c, table.columns[c]) for c in columns]
        values = [_together(parts) for parts in zip(*joint, strict=True)]
        found[name] = _pair_fingerprints(name, table, spec, values, fingerprint_key)
    return found


def deciding_columns(spec: DataSpec) -> tuple[str, ...]:
    """Returns the columns that decide a record's block or unit, sorted, each once."""
    named = (spec.split_column, spec.owner, spec.window_column, spec.user)
    return tuple(sorted({name for name in named if name not in (None, spec.id)}))


def _deciding_value(
    spec: DataSpec, column: str, values: Sequence[Any]
) -> list[str | None]:
    if column != spec.window_column:
        return [key_text(value) for value in values]
    moments = [moment_of(value) for value in values]
    return [None if moment is None else str(moment) for moment in moments]


def _together(parts: Sequence[str | None]) -> str:
    return json.dumps(parts, ensure_ascii=True, separators=(",", ":"))


def _fingerprints(name: str, values: Iterable[Any], key: bytes) -> NDArray[np.uint8]:
    texts = {text for value in values if (text := key_text(value)) is not None}
    return _sorted_array(
        keyed_digest(key, name.encode(), text.encode()) for text in texts
    )


def _content_fingerprints(
    name: str, table: RawTable, spec: DataSpec, key: bytes
) -> NDArray[np.uint8]:
    copies: Counter[bytes] = Counter()
    rows = []
    for value in table.columns[spec.content_column]:
        content = content_of(value, is_chat=spec.messages is not None)
        if isinstance(content, Fault):
            continue
        raw = content_bytes(content)
        rows.append(keyed_digest(key, name.encode(), raw, _copy(copies[raw])))
        copies[raw] += 1
    return _sorted_array(rows)


def _pair_fingerprints(
    name: str, table: RawTable, spec: DataSpec, values: Sequence[Any], key: bytes
) -> NDArray[np.uint8]:
    """Fingerprints of each record together with a value that decides its block."""
    copies: Counter[tuple[bytes, bytes]] = Counter()
    rows = []
    records = table.columns[spec.id if spec.id is not None else spec.content_column]
    for own, value in zip(records, values, strict=True):
        raw, place = _own_bytes(own, spec), key_text(value)
        if raw is None or place is None:
            continue
        pair = (raw, place.encode())
        rows.append(keyed_digest(key, name.encode(), *pair, _copy(copies[pair])))
        copies[pair] += 1
    return _sorted_array(rows)


def _own_bytes(value: Any, spec: DataSpec) -> bytes | None:
    """Returns a record's id, or its content where there are no ids."""
    if spec.id is not None:
        text = key_text(value)
        return None if text is None else text.encode()
    content = content_of(value, is_chat=spec.messages is not None)
    return None if isinstance(content, Fault) else content_bytes(content)


def _copy(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _sorted_array(rows: Iterable[bytes]) -> NDArray[np.uint8]:
    return _digest_array(sorted(set(rows)))


def _digest_array(rows: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
