"""Fixtures: a ledger on its own in a temporary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ledger.builders import add_blocks, make_full_ledger, open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pft_ray.ledger import Ledger


@pytest.fixture
def empty_ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A new ledger without data sets."""
    with open_ledger(tmp_path) as ledger:
        yield ledger


@pytest.fixture
def ledger(empty_ledger: Ledger) -> Ledger:
    """A ledger with one private data set and its two blocks (epsilon 3, delta 1e-4)."""
    add_blocks(empty_ledger)
    return empty_ledger


@pytest.fixture
def full(tmp_path):
    """The path of a closed ledger with one whole run."""
    return make_full_ledger(tmp_path / "full")
