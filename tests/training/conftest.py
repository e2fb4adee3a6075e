"""One thread, and tiny models written once for the whole test run."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny import KINDS, write_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of tiny saved models, by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny(kind, root / kind) for kind in KINDS}
