"""Planned resizes with a real coordinator and ledger: one attempt, no step twice."""

from __future__ import annotations

import pytest

from pft_ray.errors import GrantRefusedError, RunFailedError
from tests.cluster.reserved import reserve

A, B, C, D = (bytes([n]) * 16 for n in (1, 2, 3, 4))
ALL_RANKS = [A, B]


@pytest.fixture
def run(tmp_path):
    return reserve(tmp_path)


@pytest.fixture
def coordinator(run):
    return run.coordinator()


def charged(run) -> int:
    return run.ledger().run_status(run.run_id).num_steps_charged


def at_boundary(coordinator, stop=3):
    """One worker makes the steps up to ``stop`` and parks; returns its attempt."""
    attempt = coordinator.open_attempt([A], 0, "start")
    for start in range(0, stop, 3):
        coordinator.request(attempt, 0, A, start, start + 3)
    assert coordinator.want_boundary(2)
    assert coordinator.request(attempt, 0, A, stop, stop + 3).status == "boundary"
    assert coordinator.park(attempt, 0, A, stop)
    return attempt


def test_a_boundary_charges_nothing(run, coordinator):
    at_boundary(coordinator)
    assert charged(run) == 3


def test_the_next_roster_continues_the_attempt_with_shares_cut_for_itself(
    run, coordinator
):
    attempt = coordinator.open_attempt([A], 0, "start")
    alone = coordinator.request(attempt, 0, A, 0, 3).steps
    coordinator.want_boundary(2)
    coordinator.request(attempt, 0, A, 3, 6)
    coordinator.park(attempt, 0, A, 3)
    assert coordinator.approve_resize(2)
    assert coordinator.open_attempt([B, C], 3, "resume") == attempt
    assert coordinator.open_attempt([B, C], 3, "resume") == attempt, "asked again"
    first, second = (
        coordinator.request(attempt, rank, token, 3, 6).steps
        for rank, token in enumerate((B, C))
    )
    assert [keys.shares for keys in alone] == [((0, 1), (1, 1))] * 3
    assert {keys.shares for keys in first} == {((0, 1),)}
    assert {keys.shares for keys in second} == {((1, 1),)}
    assert all(keys.num_ranks == 2 for keys in first + second)
    used = [key for keys in (*alone, *first, *second) for key in keys.noise_keys]
    assert len(set(used)) == len(used) == 12
    assert [k.sample_key for k in first] == [k.sample_key for k in second]
    assert charged(run) == 6
    assert run.ledger().run_status(run.run_id).num_attempts == 1


def test_the_old_roster_gets_nothing_any_more(coordinator):
    attempt = at_boundary(coordinator)
    coordinator.approve_resize(2)
    coordinator.open_attempt([B, C], 3, "resume")
    with pytest.raises(GrantRefusedError, match="incarnation"):
        coordinator.request(attempt, 0, A, 3, 6)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_the_new_roster_gets_no_key_of_a_step_that_was_made(coordinator, start):
    attempt = at_boundary(coordinator)
    coordinator.approve_resize(2)
    coordinator.open_attempt([B, C], 3, "resume")
    with pytest.raises(GrantRefusedError, match="starts at step 3"):
        coordinator.request(attempt, 0, B, start, 3)


def test_an_incarnation_that_stays_is_no_planned_resize(coordinator):
    attempt = at_boundary(coordinator)
    coordinator.approve_resize(2)
    assert coordinator.open_attempt([A, B], 3, "resume") != attempt


@pytest.mark.parametrize("start", [0, 2])
def test_an_older_checkpoint_ends_the_attempt(run, coordinator, start):
    """The registered checkpoint was lost: steps are made again, so they are paid."""
    attempt = at_boundary(coordinator)
    coordinator.approve_resize(2)
    again = coordinator.open_attempt([B, C], start, "resume")
    assert again == attempt + 1
    coordinator.request(again, 0, B, start, 3)
    assert charged(run) == 3 + 3 - start


def test_a_group_that_dies_at_the_boundary_before_approval_ends_the_attempt(
    coordinator,
):
    attempt = at_boundary(coordinator)
    assert coordinator.open_attempt([B, C], 3, "resume") == attempt + 1


def test_parked_workers_that_die_twice_there_end_the_run(coordinator):
    at_boundary(coordinator)
    coordinator.open_attempt([B, C], 3, "resume")
    with pytest.raises(RunFailedError, match="2 times"):
        coordinator.open_attempt([A, D], 3, "resume")


def test_a_lost_node_is_a_public_cause_and_counts_at_no_place(run, coordinator):
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    for token in (B, C, D):
        coordinator.expect_new_roster("node-loss")
        coordinator.open_attempt([token], 0, "start")
    rows = run.ledger().history(50, run_id=run.run_id)
    reasons = [row.body["reason"] for row in rows if row.kind == "attempt"]
    assert reasons == ["node-loss"] * 3 + ["start"]


def test_a_public_cause_covers_one_change_of_roster_alone(coordinator):
    coordinator.open_attempt([A], 0, "start")
    coordinator.expect_new_roster("node-loss")
    coordinator.open_attempt([B], 0, "resume")
    coordinator.open_attempt([C], 0, "resume")
    with pytest.raises(RunFailedError):
        coordinator.open_attempt([D], 0, "resume")


def test_a_roster_larger_than_the_noise_shares_is_not_even_wished_for(coordinator):
    coordinator.open_attempt([A], 0, "start")
    assert not coordinator.want_boundary(3)
    assert coordinator.want_boundary(2)


def test_an_operators_stop_goes_before_a_resize(coordinator):
    attempt = at_boundary(coordinator)
    coordinator.request_stop()
    assert not coordinator.approve_resize(2)
    assert not coordinator.park(attempt, 0, A, 3)
    assert coordinator.request(attempt, 0, A, 3, 6).status == "stop"


def test_a_grant_that_one_rank_had_before_the_wish_goes_to_all(run, coordinator):
    attempt = coordinator.open_attempt(ALL_RANKS, 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.want_boundary(1)
    assert coordinator.request(attempt, 1, B, 0, 3).status == "granted"
    statuses = [
        coordinator.request(attempt, r, t, 3, 6).status for r, t in ((1, B), (0, A))
    ]
    assert statuses == ["boundary", "boundary"]


def test_a_boundary_given_up_between_two_ranks_never_lets_a_roster_pass(
    run, coordinator
):
    """One rank saw the boundary, the other was granted the step meanwhile."""
    attempt = coordinator.open_attempt(ALL_RANKS, 0, "start")
    coordinator.want_boundary(1)
    assert coordinator.request(attempt, 0, A, 0, 3).status == "boundary"
    coordinator.give_up_boundary()
    assert coordinator.request(attempt, 1, B, 0, 3).status == "granted"
    coordinator.want_boundary(1)
    assert coordinator.request(attempt, 0, A, 0, 3).status == "granted"
    assert not coordinator.park(attempt, 0, A, 0), "step 0 is not the last charged"
    assert not coordinator.approve_resize(1)


def test_a_lost_coordinator_forgets_the_resize_and_never_the_charge(run, coordinator):
    attempt = at_boundary(coordinator)
    coordinator.approve_resize(2)
    again = run.coordinator()
    assert not again.park(attempt, 0, A, 3), "workers go on and open an attempt"
    assert again.open_attempt([B, C], 3, "resume") == attempt + 1
    assert charged(run) == 3


def test_released_steps_of_a_kept_attempt_are_counted_over_its_rosters(coordinator):
    attempt = at_boundary(coordinator)
    coordinator.checkpoint_registered(attempt, 3, "step-3")
    coordinator.approve_resize(2)
    coordinator.open_attempt([B, C], 3, "resume")
    coordinator.request(attempt, 0, B, 3, 6)
    coordinator.checkpoint_registered(attempt, 6, "step-6")
    assert coordinator.status()["released"] == {attempt: 6}


def test_a_leaving_node_is_told_with_the_next_progress(coordinator):
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    assert coordinator.progress(attempt, 1) is False
    coordinator.warn_of_leaving(True)
    assert coordinator.progress(attempt, 2) is True
    coordinator.warn_of_leaving(False)
    assert coordinator.progress(attempt, 3) is False


def test_the_view_for_scaling_holds_nothing_private(coordinator):
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.tell_step_times([{"serial_s": 0.1, "parallel_s": 2.0}])
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.progress(attempt, 2)
    view = coordinator.scaling_view()
    assert view == {
        "step": 2,
        "num_steps_left": 14,
        "step_times": [{"serial_s": 0.1, "parallel_s": 2.0}],
        "boundary": {
            "stage": "none",
            "step": -1,
            "num_workers": 0,
        },
        "is_stopping": False,
    }


def test_a_run_that_ends_for_lost_nodes_may_be_resumed_again_and_again(run):
    """Each life ends at the same place, for a cause that the ledger holds as public."""
    for _ in range(3):
        coordinator = run.coordinator()
        attempt = coordinator.open_attempt([A], 0, "resume")
        coordinator.request(attempt, 0, A, 0, 3)
        coordinator.expect_new_roster("node-loss")
        coordinator.end_run("interrupted", 0, died=True)
    rows = run.ledger().history(50, run_id=run.run_id)
    reasons = [row.body["reason"] for row in rows if row.kind == "attempt"]
    assert reasons.count("node-loss") == 3
    assert not [reason for reason in reasons if "worker-restart" in reason]
