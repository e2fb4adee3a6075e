"""The ledger's tables in a database: made whole, and checked before use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pft_ray.errors import LedgerFormatError, VerificationError
from pft_ray.ledger.entries import SCHEMA_VERSION
from pft_ray.ledger.tables import metadata

if TYPE_CHECKING:
    from pft_ray.ledger.entries import Entry
    from pft_ray.ledger.store import Store

TABLES = frozenset(metadata.tables)


def write_genesis(store: Store, genesis: Entry) -> None:
    """Writes version, id and first entry into empty tables, in a transaction."""
    values = {
        "schema_version": str(genesis.body["schema"]),
        "ledger_id": genesis.body["ledger_id"],
    }
    for item in values.items():
        store.execute(store.sql.insert_meta, item)
    store.insert(genesis)


def check_schema(store: Store) -> str:
    """Checks that this version can read the ledger, and returns its id.

    Raises:
        LedgerFormatError: It is no ledger, or a newer pft_ray wrote it.
        VerificationError: Version or id are not there any more.
    """
    if not store.table_names() >= TABLES:
        raise LedgerFormatError(
            f"{store.title} is not a ledger.",
            "Give the place of a ledger, or another place to create one.",
        )
    values: dict[str, str] = dict(store.fetch(store.sql.meta))
    version = values.get("schema_version", "")
    if not version.isdigit() or "ledger_id" not in values:
        raise VerificationError(
            "The ledger's meta table does not hold its version and id any more.",
            "Restore the ledger from a copy that verifies.",
            {"row": "meta"},
        )
    if int(version) != SCHEMA_VERSION:
        raise LedgerFormatError(
            f"The ledger has schema {version}; this pft_ray reads {SCHEMA_VERSION}.",
            "Upgrade pft_ray: nothing runs on a ledger it cannot read.",
            {"schema": int(version)},
        )
    return values["ledger_id"]
