"""The coordinator as a plain class: charge before keys, keys once, incarnations."""

from __future__ import annotations

import pickle

import pytest

from pft_ray.accounting.owners import Owner, Owners
from pft_ray.crypto import new_token
from pft_ray.errors import (
    AttemptClosedError,
    GrantRefusedError,
    RunFailedError,
    StaleCoordinatorError,
)
from tests.cluster.reserved import reserve

UP_TO = "times in the steps charged up to step"
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


@pytest.fixture
def run(tmp_path):
    return reserve(tmp_path)


def charged(run) -> int:
    return run.ledger().run_status(run.run_id).num_steps_charged


def test_a_reply_with_keys_is_charged_before_it_is_made(run, monkeypatch):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    seen = []
    original = coordinator._keys

    def keys(*args):
        seen.append(charged(run))
        return original(*args)

    monkeypatch.setattr(coordinator, "_keys", keys)
    coordinator.request(attempt, 0, A, 0, 3)
    assert seen == [3], "the ledger on disk held the charge when keys were derived"


def test_ranks_share_one_charge_and_have_equal_sampling_and_distinct_noise_keys(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A, B], 0, "start")
    first = coordinator.request(attempt, 0, A, 0, 3)
    second = coordinator.request(attempt, 1, B, 0, 3)
    assert charged(run) == 3
    assert [k.sample_key for k in first.steps] == [k.sample_key for k in second.steps]
    assert [k.step for k in first.steps] == [0, 1, 2]
    noise = [key for r in (first, second) for k in r.steps for key in k.noise_keys]
    assert len(set(noise)) == len(noise) == 6
    shares = [pair for r in (first, second) for pair in r.steps[0].shares]
    assert sorted(shares) == [(0, 1), (1, 1)]


def test_with_owners_each_rank_gets_the_sampling_keys_of_its_own_alone(tmp_path):
    members = (Owner("a", 100, 2.0, 0.1), Owner("b", 300, 4.0, 0.2))
    run = reserve(tmp_path, owners=Owners("sample", members))
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A, B], 0, "start")
    first = coordinator.request(attempt, 0, A, 0, 3).steps
    second = coordinator.request(attempt, 1, B, 0, 3).steps
    assert [[owner for owner, _ in step.part_keys] for step in first] == [[0]] * 3
    assert [[owner for owner, _ in step.part_keys] for step in second] == [[1]] * 3
    keys = [key for step in (*first, *second) for _, key in step.part_keys]
    keys += [key for step in (*first, *second) for key in step.noise_keys]
    assert len(set(keys)) == 12
    assert {step.sample_key for step in (*first, *second)} == {b""}


def test_a_roster_may_lack_as_many_as_the_plan_tolerates(tmp_path):
    """Refused before an attempt is opened, so before any share is drawn."""
    members = (Owner("a", 100, 2.0, 0.1), Owner("b", 300, 4.0, 0.2))
    owners = Owners("sample", members)
    run = reserve(tmp_path, owners=owners, num_shares=3, tolerate_missing=1)
    coordinator = run.coordinator()
    with pytest.raises(GrantRefusedError, match="1 of 3 workers are there"):
        coordinator.open_attempt([A], 0, "start")
    with pytest.raises(GrantRefusedError, match="4 workers for 3"):
        coordinator.open_attempt([A, B, C, bytes(16)], 0, "start")
    assert run.ledger().run_status(run.run_id).num_attempts == 0
    attempt = coordinator.open_attempt([A, B], 0, "start")
    steps = [
        coordinator.request(attempt, r, t, 0, 3).steps[0] for r, t in ((0, A), (1, B))
    ]
    assert [step.shares for step in steps] == [((0, 1),), ((1, 1),)]
    assert [step.num_ranks for step in steps] == [2, 2]
    assert coordinator.open_attempt([A, B, C], 3, "resume") == attempt + 1


def test_the_same_request_again_gets_the_same_grant_and_no_new_charge(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    first = coordinator.request(attempt, 0, A, 0, 3)
    again = coordinator.request(attempt, 0, A, 0, 3)
    assert again == first
    assert charged(run) == 3


def test_another_incarnation_gets_nothing(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A, B], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    for rank, token in ((0, C), (1, A), (2, C), (-1, B)):
        with pytest.raises(GrantRefusedError):
            coordinator.request(attempt, rank, token, 0, 3)
    with pytest.raises(GrantRefusedError):
        coordinator.charge_look(attempt, 1, C, 6)


def test_tokens_of_a_roster_must_differ(run):
    with pytest.raises(GrantRefusedError, match="same incarnation"):
        run.coordinator().open_attempt([A, A], 0, "start")


def test_a_step_is_not_granted_twice_in_an_attempt(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.request(attempt, 0, A, 3, 6)
    with pytest.raises(GrantRefusedError):
        coordinator.request(attempt, 0, A, 0, 3)
    with pytest.raises(GrantRefusedError):
        coordinator.request(attempt, 0, A, 2, 4)


def test_a_grant_does_not_span_two_phases(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 4, "start")
    with pytest.raises(GrantRefusedError, match="phases"):
        coordinator.request(attempt, 0, A, 4, 7)


def test_a_new_attempt_closes_the_old_one_and_has_other_keys(run):
    coordinator = run.coordinator()
    first = coordinator.open_attempt([A], 0, "start")
    old = coordinator.request(first, 0, A, 0, 3)
    second = coordinator.open_attempt([B], 0, "start")
    assert coordinator.request(first, 0, A, 3, 6).status == "closed"
    new = coordinator.request(second, 0, B, 0, 3)
    assert {k.sample_key for k in old.steps}.isdisjoint(k.sample_key for k in new.steps)
    assert charged(run) == 6, "steps that run again are paid again"


def test_a_restarted_coordinator_has_the_budget_and_no_attempt(run):
    first = run.coordinator()
    attempt = first.open_attempt([A, B], 0, "start")
    first.request(attempt, 0, A, 0, 3)
    # It dies between the reply to rank 0 and the request of rank 1.
    second = run.coordinator()
    assert second.request(attempt, 1, B, 0, 3).status == "closed"
    assert second.status()["num_steps_charged"] == 3
    with pytest.raises(StaleCoordinatorError):
        first.request(attempt, 0, A, 3, 6)
    with pytest.raises(StaleCoordinatorError):
        first.open_attempt([A], 0, "start")
    fresh = second.open_attempt([A, B], 0, "coordinator-restart")
    assert fresh == attempt + 1


def test_the_allowance_is_t_max_over_all_attempts_and_the_last_grant_is_cut(run):
    coordinator = run.coordinator()
    total = 0
    for stop in (1, 2, 3, 4, 5, 6, 9):  # each ends at another place
        token = new_token()
        start = max(0, stop - 3)
        attempt = coordinator.open_attempt([token], start, "start")
        reply = coordinator.request(attempt, 0, token, start, stop)
        if reply.status == "exhausted":
            break
        total += len(reply.steps)
    assert total == run.plan.num_steps_max == 17
    assert len(reply.steps) == 2 or reply.status == "exhausted"
    assert charged(run) == 17


def test_exhausted_is_said_to_every_rank(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A, B], 0, "start")
    replies = []
    for start in (*range(0, 12, 3), 0, 3):
        if start == 0:
            tokens = [new_token(), new_token()]
            attempt = coordinator.open_attempt(tokens, 0, "start")
        stop = start + 3
        replies = [
            coordinator.request(attempt, r, tokens[r], start, stop) for r in range(2)
        ]
        assert replies[0].status == replies[1].status
    replies = [coordinator.request(attempt, r, tokens[r], 6, 9) for r in range(2)]
    assert [r.status for r in replies] == ["exhausted", "exhausted"]


def test_a_stop_is_answered_before_a_charge_and_not_after(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A, B], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    coordinator.request_stop()
    assert coordinator.request(attempt, 1, B, 0, 3).status == "granted"
    assert coordinator.request(attempt, 0, A, 3, 6).status == "stop"
    assert coordinator.request(attempt, 1, B, 3, 6).status == "stop"
    assert charged(run) == 3


def test_two_unplanned_ends_at_one_step_end_the_run(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    second = coordinator.open_attempt([B], 0, "start")
    coordinator.request(second, 0, B, 0, 3)
    with pytest.raises(RunFailedError, match=f"2 {UP_TO} 3"):
        coordinator.open_attempt([C], 0, "start")
    assert coordinator.request(second, 0, B, 0, 3).status == "closed"
    for _ in range(2):
        with pytest.raises(RunFailedError, match=f"2 {UP_TO} 3"):
            run.coordinator().open_attempt([C], 0, "resume")


def test_unplanned_ends_are_counted_over_restarts_of_the_coordinator(run):
    for number in range(2):
        coordinator = run.coordinator()
        tokens = [bytes([n + 1 + 10 * number] * 16) for n in range(2)]
        attempt = coordinator.open_attempt([tokens[0]], 0, "resume")
        coordinator.request(attempt, 0, tokens[0], 0, 2)
        if number == 0:
            coordinator.open_attempt([tokens[1]], 0, "resume")
    with pytest.raises(RunFailedError, match=f"2 {UP_TO} 2"):
        coordinator.open_attempt([tokens[1]], 0, "resume")


def test_a_group_that_died_for_good_is_counted_by_the_next_driver(run):
    for number in range(2):
        coordinator = run.coordinator()
        token = bytes([number + 1] * 16)
        attempt = coordinator.open_attempt([token], 0, "resume")
        coordinator.request(attempt, 0, token, 0, 3)
        coordinator.end_run("interrupted", 2, died=True)
    with pytest.raises(RunFailedError, match=f"2 {UP_TO} 3"):
        run.coordinator().open_attempt([C], 0, "resume")


def test_the_anchor_knows_every_charge(run):
    from pft_ray.ledger import read_anchors

    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    coordinator.request(attempt, 0, A, 0, 3)
    (anchor,) = read_anchors(run.folder / "anchor.json")
    assert anchor.sequence == run.ledger().position().sequence


def test_deaths_at_different_places_do_not_end_the_run(run):
    coordinator = run.coordinator()
    for number, stop in enumerate((1, 2, 3)):
        token = bytes([number + 1] * 16)
        attempt = coordinator.open_attempt([token], 0, "start")
        coordinator.request(attempt, 0, token, 0, stop)
    assert coordinator.status()["attempts"] == 3


def test_looks_have_fresh_keys_are_charged_first_and_stored_once(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    look = coordinator.charge_look(attempt, 0, A, 6)
    assert run.ledger().run_status(run.run_id).num_looks_charged == 1
    coordinator.store_release(look.ordinal, [1, 2])
    coordinator.store_release(look.ordinal, [1, 2])  # the reply was lost
    with pytest.raises(GrantRefusedError):
        coordinator.store_release(look.ordinal, [3, 4])
    assert coordinator.released_looks() == {6}
    more = [coordinator.charge_look(attempt, 0, A, 12) for _ in range(3)]
    assert [reply.status for reply in more] == ["granted", "granted", "exhausted"]
    assert len({look.key, *(reply.key for reply in more[:2])}) == 3


def test_values_of_a_look_charged_before_a_restart_are_dropped(run):
    first = run.coordinator()
    attempt = first.open_attempt([A], 0, "start")
    look = first.charge_look(attempt, 0, A, 6)
    second = run.coordinator()
    with pytest.raises(AttemptClosedError):
        second.store_release(look.ordinal, [1, 2])
    assert second.released_looks() == set()


def test_keys_are_in_no_file_and_in_no_text(run):
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    reply = coordinator.request(attempt, 0, A, 0, 3)
    look = coordinator.charge_look(attempt, 0, A, 6)
    coordinator.checkpoint_registered(attempt, 3, "step-3")
    secrets = [coordinator._attempt.key, look.key]
    for keys in reply.steps:
        secrets += [keys.sample_key, *keys.noise_keys]
    content = b"".join(p.read_bytes() for p in run.folder.rglob("*") if p.is_file())
    shown = repr(reply) + repr(look) + repr(coordinator._attempt)
    for secret in secrets:
        assert secret not in content
        assert secret.hex().encode() not in content
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_grant_replies_stay_small_enough_to_travel_inline(tmp_path):
    """Ray inlines replies below 100 kB: keys never lie in the object store."""
    run = reserve(tmp_path, num_shares=16, grant_size=6)
    coordinator = run.coordinator()
    attempt = coordinator.open_attempt([A], 0, "start")
    reply = coordinator.request(attempt, 0, A, 0, 6)
    assert len(pickle.dumps(reply)) < 50_000


def test_shares_of_any_roster_cover_the_noise_once(run, tmp_path):
    for world in (1, 2, 3):
        other = reserve(tmp_path / f"w{world}", num_shares=3)
        coordinator = other.coordinator()
        tokens = [bytes([world, r, 1, 1] * 4) for r in range(world)]
        attempt = coordinator.open_attempt(tokens, 0, "start")
        pairs = []
        for rank in range(world):
            reply = coordinator.request(attempt, rank, tokens[rank], 0, 3)
            pairs += reply.steps[0].shares
        assert sorted(pairs) == [(0, 1), (1, 1), (2, 1)]


def test_a_roster_larger_than_the_shares_is_refused(run):
    with pytest.raises(GrantRefusedError, match="3 workers for 2 noise shares"):
        run.coordinator().open_attempt([A, B, C], 0, "start")
