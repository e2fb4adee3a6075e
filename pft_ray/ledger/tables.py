"""The tables of schema 1 and the statements the ledger runs on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ColumnElement,
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
    func,
    insert,
    literal_column,
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

_FUNCTION = DDL(  # type: ignore[no-untyped-call]
    "CREATE FUNCTION pft_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only'; "
    "END $$"
)
event.listen(metadata, "before_create", _FUNCTION.execute_if(dialect="postgresql"))
for _table in (entries, fingerprints):
    event.listen(
        _table,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER {_table.name}_append_only "
            f"BEFORE UPDATE OR DELETE OR TRUNCATE ON {_table.name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION pft_append_only()"
        ).execute_if(dialect="postgresql"),
    )
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
_TEXTS = (entries.c.kind, entries.c.body, entries.c.prev_hash, entries.c.hash)


def _row_query(dialect: Dialect) -> Select[Any]:
    """Selects a row's texts as the bytes that they are.

    SQLite's cast does that. PostgreSQL's would read backslashes as escapes, so there
    its conversion function is asked.
    """
    if dialect.name == "postgresql":
        utf8: ColumnElement[str] = literal_column("'UTF8'")
        return select(entries.c.seq, *(func.convert_to(c, utf8) for c in _TEXTS))
    return select(entries.c.seq, *(cast(column, LargeBinary) for column in _TEXTS))


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
        row = _row_query(dialect)
        upwards = row.where(entries.c.seq >= bindparam("seq")).order_by(entries.c.seq)
        downwards = row.order_by(entries.c.seq.desc())
        below = downwards.where(entries.c.seq < bindparam("seq"))
        self.rows_from = compiled(upwards)
        self.rows_down = compiled(downwards)
        self.page_from = compiled(upwards.limit(bindparam("rows", type_=Integer())))
        self.page_down = compiled(below.limit(bindparam("rows", type_=Integer())))
        self.digests = compiled(_digests)
        self.overlaps = compiled(_overlaps)
        self.fingerprinted = compiled(
            select(fingerprints.c.dataset, fingerprints.c.namespace).distinct()
        )
