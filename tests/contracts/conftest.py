"""Contracts: what a privacy guarantee rests on, from the file to what is released."""

from __future__ import annotations

import pytest

from tests.training.tiny import KINDS, write_tiny


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of tiny saved models, by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny(kind, root / kind) for kind in KINDS}
