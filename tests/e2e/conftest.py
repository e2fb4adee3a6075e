"""One tiny job with a ledger of its own for all tests of bad inputs."""

from __future__ import annotations

import pytest

from tests.e2e.refusals import Bench, pft


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def _shared_bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFT_HOME", str(folder / "home"))
        bench = Bench(folder)
        answer = pft("budget", "create", bench.job, "--runs", 2)
        assert answer.code == 0, answer.err
    return bench


@pytest.fixture
def bench(_shared_bench, monkeypatch):
    """The bench, with its ledger and folder as the current ones."""
    monkeypatch.setenv("PFT_HOME", str(_shared_bench.folder / "home"))
    monkeypatch.chdir(_shared_bench.folder)
    return _shared_bench
