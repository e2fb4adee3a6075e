"""A user's records are clipped together, once, and a faulty one is left out alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.data.users import group_users
from pft_ray.errors import InputError
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import loaded, random_table, spec_of

NUM = 12


def table_of(users, seed=3):
    """A random table whose row i belongs to user ``users[i]``."""
    table = random_table(len(users), seed=seed)
    digests = np.zeros((len(users), 16), dtype=np.uint8)
    digests[:, 0] = users
    return group_users(dataclasses.replace(table, users=digests))


def work_of(folders, table, groups, *, mean=True, micro=6, kind="bert"):
    model = loaded(spec_of(folders[kind], kind), torch.float64)
    work = LocalWork(model, table, max_micro_batch=micro, users=groups, mean=mean)
    work.start_phase("head", OptimizerSpec("sgd", 0.1, 4))
    return work


def naive(work, table, groups, users, clip_norm, mean):
    """One record at a time without users, then clipped by hand."""
    plain = LocalWork(work._model, table, max_micro_batch=1)
    plain.start_phase("head", OptimizerSpec("sgd", 0.1, 4))
    total = 0.0
    for user in users:
        rows = groups.rows(user)
        own = sum(plain.plain_sum(np.array([row])) for row in rows)
        own = own / len(rows) if mean else own
        total = total + own * min(1.0, clip_norm / float(own.norm()))
    return total


USERS = [0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("clip_norm", [0.3, 100.0])
def test_equals_a_loop_over_users(tiny_folders, mean, clip_norm):
    table, groups = table_of(USERS)
    for micro in (4, 5, 64):
        work = work_of(tiny_folders, table, groups, mean=mean, micro=micro)
        users = np.array([0, 2, 3, 5])
        expected = naive(work, table, groups, users, clip_norm, mean)
        found = work.clipped_sum(users, clip_norm).vector
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    unclipped = naive(work, table, groups, users, 1e9, mean)
    torch.testing.assert_close(work.plain_sum(users), unclipped, rtol=1e-9, atol=1e-12)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=NUM),
    st.floats(0.05, 5.0),
    st.booleans(),
)
def test_one_user_more_or_less_moves_the_sum_by_at_most_c(
    tiny_folders, owners, clip_norm, mean
):
    table, groups = table_of(owners)
    work = work_of(tiny_folders, table, groups, mean=mean, micro=NUM)
    everyone = np.arange(len(groups))
    whole = work.clipped_sum(everyone, clip_norm).vector
    for user in everyone:
        rest = work.clipped_sum(np.delete(everyone, user), clip_norm).vector
        assert float((whole - rest).norm()) <= clip_norm * (1 + 1e-9)


@pytest.mark.parametrize("fault", ["raises", "not finite", "no tokens"])
def test_a_faulty_record_is_left_out_alone(tiny_folders, fault, monkeypatch):
    """The user's other records and the other users contribute as before."""
    table, groups = table_of(USERS)
    poison = int(groups.rows(2)[1])
    table.input_ids[poison, 0] = 7  # told by this token
    table.input_ids[np.arange(NUM) != poison, 0] = 8
    if fault == "no tokens":
        table.lengths[poison] = 0
    work = work_of(tiny_folders, table, groups)
    inner = work._model.losses

    def faulty(batch):
        hit = batch.input_ids[:, 0] == 7
        if fault == "raises" and bool(hit.any()):
            raise RuntimeError("a record that raises")
        values = inner(batch)
        if fault == "not finite":
            return values * torch.where(hit, torch.nan, 1.0)
        return values

    rest = np.delete(np.arange(NUM), poison)
    alone = work_of(tiny_folders, table.take(rest), None)
    expected = torch.zeros(work.num_parameters, dtype=torch.float64)
    places = {int(row): place for place, row in enumerate(rest)}
    for user in range(len(groups)):
        rows = [int(row) for row in groups.rows(user)]
        kept = np.array([places[row] for row in rows if row != poison])
        own = alone.plain_sum(kept) / len(rows)
        expected += own * min(1.0, 0.05 / float(own.norm()))
    monkeypatch.setattr(work._users, "losses", faulty)
    found = work.clipped_sum(np.arange(len(groups)), 0.05).vector
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_is_refused(tiny_folders):
    table, groups = table_of(USERS)
    with pytest.raises(InputError, match="more records than max_micro_batch 3"):
        work_of(tiny_folders, table, groups, micro=3)
    work = work_of(tiny_folders, table, groups)
    for users in ([0, 0], [6], [-1]):
        with pytest.raises(ValueError, match=r"positions|twice"):
            work.clipped_sum(np.array(users), 1.0)
    assert float(work.clipped_sum(np.array([], dtype=np.int64), 1.0).vector.norm()) == 0


def test_users_of_a_model_without_batched_gradients_run_one_by_one(tiny_folders):
    """Records of a user may meet, records of two users may not."""
    model = loaded(spec_of(tiny_folders["bert"], "bert"))
    losses = model.losses
    seen = []

    def coupled(batch):
        seen.append(len(batch))
        each = losses(batch)
        return each * each.detach().mean()

    model.losses = coupled
    table, groups = table_of([0, 0, 1, 2, 2, 2])
    work = LocalWork(model, table, max_micro_batch=4, users=groups)
    work.start_phase("head", OptimizerSpec("sgd", 0.1, num_steps=3))
    assert work.slow_reason
    seen.clear()
    total = work.clipped_sum(np.arange(3), 1e-3).vector
    assert seen == [2, 1, 3]
    assert 0 < float(total.norm()) <= 3e-3
