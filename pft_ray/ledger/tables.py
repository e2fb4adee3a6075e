"""The tables of schema 1 and the statements the ledger runs on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Dialect,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    event,
    insert,
    select,
)

metadata = MetaData()
# SQLite wants the type INTEGER for a key that is the row's own address.
_Sequence = Integer().with_variant(BigInteger(), "postgresql")

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)
entries = Table(
    "entries",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    sqlite_strict=True,
)
fingerprints = Table(
    "fingerprints",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("digest", LargeBinary(16), primary_key=True),
    Column("dataset", Text, primary_key=True),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

for _table in (entries, fingerprints):
    for _verb in ("UPDATE", "DELETE"):
        event.listen(
            _table,
            "after_create",
            DDL(  # type: ignore[no-untyped-call]
                f"CREATE TRIGGER {_table.name}_no_{_verb.lower()} "
                f"BEFORE {_verb} ON {_table.name} "
                f"BEGIN SELECT RAISE(ABORT, '{_table.name} is append-only'); END"
            ).execute_if(dialect="sqlite"),
        )


_other = fingerprints.alias("other")
_row = select(
    entries.c.seq,
    *(
        cast(column, LargeBinary)
        for column in (
            entries.c.kind,
            entries.c.body,
            entries.c.prev_hash,
            entries.c.hash,
        )
    ),
)
_digests = (
    select(fingerprints.c.digest)
    .where(
        and_(
            fingerprints.c.namespace == bindparam("namespace"),
            fingerprints.c.dataset == bindparam("dataset"),
        )
    )
    .order_by(fingerprints.c.digest)
)
_overlaps = (
    select(_other.c.dataset)
    .distinct()
    .select_from(
        fingerprints.join(
            _other,
            and_(
                fingerprints.c.namespace == _other.c.namespace,
                fingerprints.c.digest == _other.c.digest,
                fingerprints.c.dataset != _other.c.dataset,
            ),
        )
    )
    .where(fingerprints.c.dataset == bindparam("dataset"))
)


class Statements:
    """SQL compiled once for a dialect: the append path pays no compilation.

    Parameters are in the order in which they stand in the text. Rows of entries come
    as (seq, kind, body, prev_hash, hash), the last four as bytes.
    """

    def __init__(self, dialect: Dialect) -> None:
        def compiled(statement: Insert | Select[Any]) -> str:
            return str(statement.compile(dialect=dialect))

        self.insert_entry = compiled(insert(entries))
        self.insert_meta = compiled(insert(meta))
        self.insert_fingerprint = compiled(insert(fingerprints))
        self.meta = compiled(select(meta.c.key, meta.c.value))
        self.rows_from = compiled(
            _row.where(entries.c.seq >= bindparam("seq")).order_by(entries.c.seq)
        )
        self.rows_down = compiled(_row.order_by(entries.c.seq.desc()))
        self.digests = compiled(_digests)
        self.overlaps = compiled(_overlaps)
        self.fingerprinted = compiled(
            select(fingerprints.c.dataset, fingerprints.c.namespace).distinct()
        )
