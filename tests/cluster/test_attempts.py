"""Which roster may continue an attempt, and what it then may ask for."""

from __future__ import annotations

import pytest

from pft_ray.cluster.attempts import Attempt
from pft_ray.errors import GrantRefusedError
from tests.cluster.reserved import reserve

A, B, C, D = (bytes([n]) * 16 for n in (1, 2, 3, 4))


@pytest.fixture
def attempt():
    """Two workers from step 2 on, with grants up to step 8."""
    opened = Attempt(1, bytes(32), (A, B), 2)
    opened.granted.update({2: 5, 5: 8})
    return opened


def test_only_a_new_roster_with_every_charged_step_continues(attempt):
    assert attempt.can_pass([C, D], 8)
    assert attempt.can_pass([C], 8)
    assert not attempt.can_pass([C, D], 5), "step 5 would be made twice"
    assert not attempt.can_pass([C, D], 2)
    assert not attempt.can_pass([C, D], 9), "step 8 would be left out"
    assert not attempt.can_pass([A, C], 8), "one that stays has keys of its share"


def test_nobody_continues_an_attempt_that_ended(attempt):
    attempt.ended = True
    assert not attempt.can_pass([C, D], 8)


def test_the_next_roster_has_nothing_of_the_last(attempt):
    attempt.serve(0, A, 5)
    attempt.sample_keys[7] = bytes(32)
    attempt.pass_to([C], 8)
    assert attempt.tokens == (C,)
    assert (attempt.start, attempt.charged) == (2, 8)
    kept = (attempt.granted, attempt.served, attempt.sample_keys)
    assert kept == ({}, {}, {})
    with pytest.raises(GrantRefusedError, match="incarnation"):
        attempt.check_incarnation(0, A)
    for step in range(8):
        with pytest.raises(GrantRefusedError, match="starts at step 8"):
            attempt.check_order(0, step)
    attempt.check_order(0, 8)


def test_a_step_charged_after_the_approval_ends_the_attempt(tmp_path):
    """A rank that asks beyond the boundary is charged; nobody may count on it."""
    run = reserve(tmp_path)
    coordinator = run.coordinator()
    number = coordinator.open_attempt([A], 0, "start")
    coordinator.request(number, 0, A, 0, 3)
    coordinator.want_boundary(2)
    coordinator.request(number, 0, A, 3, 6)
    assert coordinator.park(number, 0, A, 3)
    assert coordinator.approve_resize(2)
    assert coordinator.request(number, 0, A, 6, 9).status == "granted"
    assert coordinator.open_attempt([B, C], 3, "resume") == number + 1
    assert run.ledger().run_status(run.run_id).num_steps_charged == 6
