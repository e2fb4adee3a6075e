"""What tests of verification share."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from pft_ray.ledger import Anchor, Ledger, verify
from tests.ledger.builders import (
    price_nothing,
)

COMPLETENESS = "valid prefix, completeness not proven"


def check(path, *anchors, **options):
    return verify(path, anchors, **{"epsilon": price_nothing, **options})


def rows_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM entries ORDER BY seq").fetchall()


def anchor_of(path, *, counts="entries"):
    with Ledger.open(path) as ledger:
        at = ledger.position()
        if counts == "reservations":
            at = ledger.reservation_position(ledger.runs()[-1].run_id)
        return Anchor(ledger.ledger_id, at.sequence, at.root, "checkpoint x", counts)
