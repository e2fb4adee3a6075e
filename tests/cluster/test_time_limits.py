"""Which clock coordinators and waiting runs count time limits by."""

from __future__ import annotations

import time

import pytest

from pft_ray.cluster import reservations
from pft_ray.cluster.run_folder import RunFolder
from pft_ray.ledger import Envelope
from tests.cluster.reserved import make_plan, reserve


@pytest.fixture
def limited(tmp_path):
    """A reserved run, and a second one with a time limit of a minute."""
    run = reserve(tmp_path)
    with run.ledger() as ledger:
        ask(ledger, "limited", 8.0, 60.0)
        yield run, ledger


def ask(ledger, run_id, epsilon, limit_s=None):
    plan = make_plan(evaluation=None)
    envelopes = [Envelope.priced("d/train", "training", epsilon, 1e-5, plan.event)]
    return ledger.queue.request(run_id, plan, envelopes, time_limit_s=limit_s)


class Clocks:
    """The process's clocks, moved by a test."""

    def __init__(self, patch):
        self.ahead_s = {"monotonic": 0.0, "time": 0.0}
        for name in self.ahead_s:
            patch.setattr(time, name, self._moved(name, getattr(time, name)))

    def _moved(self, name, original):
        return lambda: original() + self.ahead_s[name]


def test_a_coordinator_counts_by_the_monotonic_clock_alone(limited, monkeypatch):
    run, ledger = limited
    clocks = Clocks(monkeypatch)
    coordinator = run.coordinator()
    coordinator.status()
    for jump_s in (1e6, -1e9):
        clocks.ahead_s["time"] = jump_s
        coordinator.status()
        assert ledger.run_status("limited").status == "reserved"
    clocks.ahead_s["monotonic"] = 59.0
    coordinator.status()
    assert ledger.run_status("limited").status == "reserved"
    fresh = run.coordinator()  # begins in full
    fresh.status()
    clocks.ahead_s["monotonic"] = 118.0
    fresh.status()
    assert ledger.run_status("limited").status == "reserved"
    fresh.status()
    clocks.ahead_s["monotonic"] = 120.0
    fresh.status()
    assert ledger.run_status("limited").status == "expired"


def test_who_waits_lets_time_limits_pass_and_goes_next(limited, tmp_path, monkeypatch):
    """No coordinator is up: the run that waits frees what it waits for."""
    _, ledger = limited
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr(reservations, "_POLL_S", 0.01)
    assert ask(ledger, "waits", 70.0) == "waiting"
    folder = RunFolder(tmp_path / "waits")
    folder.acquire()
    seen = []

    def on_wait(row):
        seen.append(row.waits_for["missing"])
        clocks.ahead_s["time"] += 1e6
        clocks.ahead_s["monotonic"] += 25.0

    reservations.wait_for_turn(ledger, folder, on_wait)
    assert seen == [6.0] * 3
    assert ledger.run_status("limited").status == "expired"
    assert ledger.run_status("waits").status == "reserved"
