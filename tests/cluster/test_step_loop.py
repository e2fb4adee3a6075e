"""The loop with a real coordinator and ledger: faults, restarts, looks, spies.

Ranks are threads; the coordinator may be replaced between or inside calls, as a
killed actor would be.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch

from pft_ray.crypto import new_token
from pft_ray.errors import CoordinatorUnreachableError, ModelError, VoidStepError
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.loop import TrainingLoop
from pft_ray.training.step import PrivateStep
from pft_ray.training.types import ClippedSum
from tests.cluster.reserved import Reserved, reserve
from tests.training.ranks import Ranks


@dataclass
class Work:
    """Contributes nothing; counts updates."""

    applied: int = 0

    def clipped_sum(self, positions, clip_norm):
        return ClippedSum(torch.zeros(8, dtype=torch.float64), clip_norm)

    def apply(self, grad):
        self.applied += 1


@dataclass
class Host:
    """Holds the current coordinator; ``crash`` replaces it by a fresh replay."""

    run: Reserved
    crashes: list = field(default_factory=list)
    keys_seen: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: dict = field(default_factory=dict)

    def __post_init__(self):
        self.coordinator = self.run.coordinator()

    def crash(self):
        self.coordinator = self.run.coordinator()


@dataclass
class Client:
    """A rank's line; ``before`` and ``after`` are called around each call."""

    host: Host
    rank: int
    token: bytes = field(default_factory=new_token)
    before: object = None
    after: object = None
    ahead: object = None

    def _call(self, name, *args):
        with self.host.lock:
            if self.before:
                self.before(self, name, args)
            result = getattr(self.host.coordinator, name)(*args)
            if self.after:
                self.after(self, name, args)
            return result

    def open_attempt(self, tokens, start, reason):
        return self._call("open_attempt", tokens, start, reason)

    def request(self, attempt, start, stop):
        asked, reply = self.ahead or (None, None)
        self.ahead = None
        if asked != (attempt, start, stop):
            reply = self._call("request", attempt, self.rank, self.token, start, stop)
        for keys in reply.steps:
            self.host.keys_seen.update((self.rank, k) for k in keys.noise_keys)
        return reply

    def ask_ahead(self, attempt, start, stop):
        reply = self._call("request", attempt, self.rank, self.token, start, stop)
        self.ahead = ((attempt, start, stop), reply)

    def charge_look(self, attempt, step):
        return self._call("charge_look", attempt, self.rank, self.token, step)

    def store_release(self, ordinal, values):
        return self._call("store_release", ordinal, values)

    def released_looks(self):
        return self._call("released_looks")

    def progress(self, attempt, step):
        return self._call("progress", attempt, step)


def run_loops(
    host,
    world=2,
    start=0,
    before=None,
    after=None,
    evaluate=True,
    enter=None,
    elastic=False,
):
    """Runs one worker group; returns outcomes, works and checkpoints by rank.

    A rank that raises ends the group, as Ray would: ``host.ended`` says with what.
    """
    group = Ranks(world)
    outcomes, works, saved = [None] * world, [Work() for _ in range(world)], []
    plan = host.run.plan
    looks: list[bytes] = []

    def rank_main(rank):
        step = PrivateStep(
            plan,
            SampledGaussian.from_plan(plan),
            works[rank],
            np.zeros((0, 16), dtype=np.uint8),
            group.of(rank),
        )

        def look(key):
            looks.append(key)
            return [1, 2, 3]

        loop = TrainingLoop(
            plan,
            step,
            Client(host, rank, before=before, after=after),
            enter_phase=partial(enter, rank) if enter else lambda index: None,
            checkpoint=lambda s, a: saved.append((rank, s, a)),
            evaluate=look if evaluate else None,
            is_elastic=elastic,
        )
        try:
            outcomes[rank] = loop.run(start, "start")
        except RuntimeError as error:
            host.ended[rank] = error
            group.barrier.abort()

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert host.ended or all(outcome is not None for outcome in outcomes)
    return outcomes, works, saved, looks


@pytest.fixture
def host(tmp_path):
    return Host(reserve(tmp_path))


def test_a_quiet_run_makes_the_planned_steps_and_looks(host):
    outcomes, works, saved, looks = run_loops(host)
    assert [o.status for o in outcomes] == ["completed"] * 2
    assert [w.applied for w in works] == [12, 12]
    assert [s for r, s, _ in saved if r == 0] == [3, 6, 9, 12]
    status = host.run.ledger().run_status("run-1")
    assert status.num_steps_charged == 12
    assert len(looks) == 2
    released = host.run.ledger().released("run-1")
    assert {v["step"] for v in released.values()} == {6, 12}
    assert outcomes[0].released == {1: 12}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_coordinator_lost_around_any_request_costs_steps_and_never_the_guarantee(
    host, moment, nth
):
    count = 0

    def crash(client, name, args):
        nonlocal count
        if name == "request":
            count += 1
            if count == nth:
                client.host.crash()

    outcomes, works, _, _ = run_loops(host, **{moment: crash})
    assert {o.status for o in outcomes} == {"completed"}
    assert [w.applied for w in works] == [12, 12], "no planned step is lost"
    status = host.run.ledger().run_status("run-1")
    released = sum(outcomes[0].released.values())
    assert status.num_attempts == 2
    assert released == 12 <= status.num_steps_charged <= 12 + 3
    assert max(host.keys_seen.values()) == 1, "no noise key was handed out twice"


def test_a_coordinator_lost_between_look_and_store_spends_the_spare_look(host):
    done = []

    def crash(client, name, args):
        if name == "charge_look" and not done:
            done.append(1)
            client.host.crash()

    outcomes, _, _, looks = run_loops(host, after=crash)
    assert {o.status for o in outcomes} == {"completed"}
    status = host.run.ledger().run_status("run-1")
    assert status.num_looks_charged == 3
    assert len(looks) == len(set(looks)) == 3
    released = host.run.ledger().released("run-1")
    assert sorted(v["step"] for v in released.values()) == [6, 12]


def test_looks_beyond_those_paid_for_are_left_out(host):
    crashed = []

    def crash(client, name, args):
        if name == "charge_look" and len(crashed) < 2:
            crashed.append(1)
            client.host.crash()

    outcomes, _, _, _ = run_loops(host, after=crash)
    assert {o.status for o in outcomes} == {"completed"}
    released = host.run.ledger().released("run-1")
    assert sorted(v["step"] for v in released.values()) == [6]


def test_a_used_up_allowance_ends_the_run_with_what_it_has(host):
    """Groups restart from step 0 until T_max is used up."""
    for number, stop_at in enumerate((5, 4)):

        def stop(client, name, args, stop_at=stop_at):
            if name == "progress" and args[1] == stop_at and client.rank == 0:
                client.host.coordinator.request_stop()

        outcomes, _, _, _ = run_loops(host, after=stop, evaluate=False)
        host.coordinator._stop = False
        assert {o.status for o in outcomes} == {"interrupted"}, number
    outcomes, _, saved, _ = run_loops(host, evaluate=False)
    assert {o.status for o in outcomes} == {"budget_exhausted"}
    status = host.run.ledger().run_status("run-1")
    assert status.num_steps_charged == host.run.plan.num_steps_max
    last = outcomes[0].step
    assert 0 < last < host.run.plan.num_steps
    assert (0, last, outcomes[0].released and max(outcomes[0].released)) in saved


def test_a_second_group_takes_over_and_pays_again(host):
    def die(client, name, args):
        if name == "progress" and args[1] == 4:
            client.host.coordinator.request_stop()

    run_loops(host, after=die)
    host.coordinator._stop = False
    outcomes, works, _, _ = run_loops(host, start=3)
    assert {o.status for o in outcomes} == {"completed"}
    assert works[0].applied == 9
    status = host.run.ledger().run_status("run-1")
    assert status.num_steps_charged == 6 + 9
    assert status.num_attempts == 2


def test_without_a_coordinator_no_step_is_made(host):
    def unreachable(client, name, args):
        if name == "request":
            raise CoordinatorUnreachableError("It is gone.")

    outcomes, works, _, _ = run_loops(host, before=unreachable)
    assert {o.status for o in outcomes} == {"failed"}
    assert [w.applied for w in works] == [0, 0]


def test_a_void_step_opens_a_new_attempt_and_stays_charged(host, monkeypatch):
    voided = []
    original = PrivateStep._check

    def check(self, keys, phase, clip_norm):
        if keys.step == 4 and keys.attempt == 1:
            voided.append(1)
            raise VoidStepError("made up")
        original(self, keys, phase, clip_norm)

    monkeypatch.setattr(PrivateStep, "_check", check)
    outcomes, works, _, _ = run_loops(host)
    assert {o.status for o in outcomes} == {"completed"}
    assert [w.applied for w in works] == [12, 12]
    status = host.run.ledger().run_status("run-1")
    assert len(voided) == 2
    assert status.num_attempts == 2
    assert status.num_steps_charged == 12 + 2


def test_a_step_void_twice_ends_the_run(host, monkeypatch):
    def check(self, keys, phase, clip_norm):
        if keys.step == 4:
            raise VoidStepError("made up")

    monkeypatch.setattr(PrivateStep, "_check", check)
    outcomes, works, _, _ = run_loops(host)
    assert {o.status for o in outcomes} == {"failed"}
    assert works[0].applied == 4
    assert "2 times" in str(outcomes[0].error) or "2 times" in str(outcomes[1].error)


def test_the_next_grant_is_asked_for_before_the_last_step_of_this_one(host):
    order = []

    def note(client, name, args):
        if client.rank == 0 and name in ("request", "progress"):
            order.append((name, args[3:] if name == "request" else args[1]))

    run_loops(host, before=note, evaluate=False)
    requests = [what for name, what in order if name == "request"]
    assert requests == [(0, 3), (3, 6), (6, 9), (9, 12)], "each is charged once"
    assert order.index(("request", (3, 6))) < order.index(("progress", 3))


def test_a_grant_asked_ahead_that_is_lost_stays_charged(host, monkeypatch):
    """The last step of a grant is void: the grant after it was charged by then."""
    run_step = PrivateStep.run
    lock, voided = threading.Lock(), Counter()

    def run(self, keys):
        with lock:
            voided[keys.step] += keys.step == 2
        if keys.step == 2 and voided[2] <= 2:
            raise VoidStepError("As a test.")
        run_step(self, keys)

    monkeypatch.setattr(PrivateStep, "run", run)
    outcomes, works, _, _ = run_loops(host, evaluate=False)
    assert {o.status for o in outcomes} == {"completed"}
    assert works[0].applied == 12
    charged = host.run.ledger().run_status("run-1").num_steps_charged
    assert charged == 6 + 10, "steps 0 to 5, then 2 to 11 again"
    assert max(host.keys_seen.values()) == 1, "no key was handed out twice"


@pytest.mark.parametrize("step", range(6))
def test_a_step_that_is_void_twice_ends_the_run_wherever_it_lies(
    host, monkeypatch, step
):
    run_step = PrivateStep.run

    def run(self, keys):
        if keys.step == step:
            raise VoidStepError("As a test.")
        run_step(self, keys)

    monkeypatch.setattr(PrivateStep, "run", run)
    outcomes, works, _, _ = run_loops(host, evaluate=False)
    assert {o.status for o in outcomes} == {"failed"}
    assert "2 times" in str(outcomes[0].error)
    assert works[0].applied == step
    assert host.run.ledger().run_status("run-1").num_attempts == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_phase_that_cannot_be_entered_on_one_rank_ends_the_group(host, rank):
    """A quiet return would leave the others waiting for that rank's share."""

    def enter(own_rank, index):
        if (own_rank, index) == (rank, 1):
            raise ModelError("No room for phase two.")

    outcomes, works, _, _ = run_loops(host, evaluate=False, enter=enter)
    assert outcomes == [None, None], "neither rank came to an end of its own"
    assert f"rank {rank} cannot make its part" in str(host.ended[rank])
    assert isinstance(host.ended[rank].__cause__, ModelError)
    assert [w.applied for w in works] == [6, 6], "no step of the second phase"
    assert host.run.ledger().run_status("run-1").num_steps_charged == 9

    host.ended.clear()
    outcomes, works, _, _ = run_loops(host, start=6, evaluate=False)
    assert [o.status for o in outcomes] == ["completed"] * 2
    assert [w.applied for w in works] == [6, 6]
    status = host.run.ledger().run_status("run-1")
    assert (status.num_attempts, status.num_steps_charged) == (2, 9 + 6)


def warned_at(first, last):
    """A node of the run is about to leave while steps first to last are made."""

    def warn(client, name, args):
        if name == "progress" and client.rank == 0:
            client.host.coordinator.warn_of_leaving(first <= args[1] <= last)

    return warn


def test_a_notice_makes_every_rank_save_at_once_in_the_middle_of_a_grant(host):
    """Once for each notice; grants of 3 end where they always do."""
    outcomes, works, saved, _ = run_loops(host, before=warned_at(4, 5), elastic=True)
    assert {o.status for o in outcomes} == {"completed"}
    assert [w.applied for w in works] == [12, 12]
    for rank in (0, 1):
        assert [s for r, s, _ in saved if r == rank] == [3, 4, 6, 9, 12]


def test_a_second_notice_is_saved_for_again(host):
    warn_once, warn_again = warned_at(4, 4), warned_at(7, 8)

    def warn(client, name, args):
        if name == "progress" and client.rank == 0:
            (warn_once if args[1] < 6 else warn_again)(client, name, args)

    _, _, saved, _ = run_loops(host, before=warn, elastic=True)
    assert [s for r, s, _ in saved if r == 0] == [3, 4, 6, 7, 9, 12]


def test_a_run_of_a_fixed_size_saves_where_it_always_does(host):
    _, _, saved, _ = run_loops(host, before=warned_at(4, 5))
    assert [s for r, s, _ in saved if r == 0] == [3, 6, 9, 12]


def test_a_group_that_goes_on_in_the_middle_of_a_grant_pays_under_a_new_attempt(host):
    run_loops(host, before=warned_at(4, 5), elastic=True, evaluate=False)
    outcomes, works, _, _ = run_loops(host, start=10, evaluate=False)
    assert {o.status for o in outcomes} == {"completed"}
    assert [w.applied for w in works] == [2, 2]
    status = host.run.ledger().run_status("run-1")
    assert (status.num_attempts, status.num_steps_charged) == (2, 12 + 2)
    assert max(host.keys_seen.values()) == 1
