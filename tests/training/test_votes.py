"""The votes of a step's units: from the very norms that are clipped, none for a fault.

Gradient and vote of a unit together never move more than the joint norm.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.data.users import group_users
from pft_ray.training.clip_norms import RAMP, balance_of
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import (
    VOCAB,
    loaded,
    naive_gradients,
    random_table,
    spec_of,
)

NUM = 8
FIRST = VOCAB - NUM
EVERYONE = np.arange(NUM)
SGD = OptimizerSpec("sgd", 0.1, 4)
USERS = [0, 1, 1, 2, 2, 2, 3, 3]


class Scaled:
    """A work whose records have scaled losses, told by their first token.

    Attributes:
        raising: First tokens of records that raise.
        factors: By first token; made-up records have others.
        mates: What the loss of a record is multiplied by when it is not alone.
    """

    def __init__(self, folder, *, users=None, micro=4):
        table = random_table(NUM, seed=6)
        table.input_ids[:, 0] = FIRST + np.arange(NUM)
        self.raising: set[int] = set()
        self.factors = torch.ones(VOCAB, dtype=torch.float64)
        self.mates = 1.0
        groups = None
        if users is not None:
            digests = np.zeros((NUM, 16), dtype=np.uint8)
            digests[:, 0] = users
            table, groups = group_users(dataclasses.replace(table, users=digests))
        self.table, self.groups = table, groups
        self.model = loaded(spec_of(folder, "bert"), torch.float64)
        self.work = LocalWork(self.model, table, max_micro_batch=micro, users=groups)
        self.work.start_phase("head", SGD, "adaptive")
        named = self.work._clipper._parameters
        self.norms = naive_gradients(self.model, named, table).norm(dim=1)
        inner, made_up = self.model.losses, self.work._synthetic

        def losses(batch):
            tokens = batch.input_ids[:, 0]
            if self.raising & set(tokens.tolist()):
                raise RuntimeError("of one record")
            mates = self.mates if len(batch) > 1 else 1.0
            return inner(batch) * self.factors[tokens] * mates

        def synthetic(count):
            batch = made_up(count)
            ids = batch.input_ids.clamp(max=FIRST - 1)
            return dataclasses.replace(batch, input_ids=ids)

        self.model.losses = losses
        self.work._synthetic = synthetic
        if self.work._users is not None:
            self.work._users.losses = losses

    def each(self, places):
        """Yields (first token, norm, place) of each record."""
        tokens = self.table.input_ids[:, 0].tolist()
        return zip(tokens, self.norms.tolist(), places, strict=True)

    def joined(self, units, clip_norm, rule, sigma):
        """The vector that would be noised: the sum, then the weighted balance."""
        found = self.work.clipped_sum(units, clip_norm)
        joint = rule.joint(sigma, clip_norm)
        last = torch.tensor([joint.weight * found.balance], dtype=torch.float64)
        return torch.cat([found.vector, last]), joint


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_balance_is_that_of_the_naive_norms(tiny_folders, micro):
    scaled = Scaled(tiny_folders["bert"], micro=micro)
    for clip_norm in (1e-3, float(scaled.norms.median()), 1e3):
        found = scaled.work.clipped_sum(EVERYONE, clip_norm)
        assert found.balance == pytest.approx(balance_of(scaled.norms, clip_norm))
    assert scaled.work.clipped_sum(EVERYONE[:0], 1.0).balance == 0


@pytest.mark.parametrize("fault", ["raises", "not finite", "no tokens"])
def test_a_faulty_record_has_no_vote(tiny_folders, fault):
    scaled = Scaled(tiny_folders["bert"])
    if fault == "raises":
        scaled.raising = {FIRST + 5}
    elif fault == "not finite":
        scaled.factors[FIRST + 5] = torch.nan
    else:
        scaled.table.lengths[5] = 0
    for clip_norm, vote in ((1e3, 1), (1e-3, -1)):
        found = scaled.work.clipped_sum(EVERYONE, clip_norm)
        assert found.balance == vote * (NUM - 1)
    alone = scaled.work.clipped_sum(np.array([5]), 1.0)
    assert (float(alone.vector.norm()), alone.balance) == (0, 0)


def test_a_user_has_one_vote_on_the_mean_of_its_records(tiny_folders):
    scaled = Scaled(tiny_folders["bert"], users=USERS)
    named = scaled.work._clipper._parameters
    own = naive_gradients(scaled.model, named, scaled.table)
    rows = [scaled.groups.rows(user) for user in range(4)]
    norms = torch.stack([own[torch.from_numpy(r)].mean(0).norm() for r in rows])
    for clip_norm in (1e-3, float(norms.median()), 1e3):
        found = scaled.work.clipped_sum(np.arange(4), clip_norm)
        assert found.balance == pytest.approx(balance_of(norms, clip_norm))


@pytest.mark.parametrize("faulty", [1, 2, 3])
def test_a_user_votes_while_one_of_its_records_is_sound(tiny_folders, faulty):
    """User 2 has three records; with none of them left it has no vote."""
    scaled = Scaled(tiny_folders["bert"], users=USERS)
    rows = scaled.groups.rows(2)
    tokens = scaled.table.input_ids[rows, 0]
    scaled.raising = set(tokens[:faulty].tolist())
    assert scaled.work.clipped_sum(np.arange(4), 1e3).balance == (
        4 if faulty < 3 else 3
    )
    found = scaled.work.clipped_sum(np.array([2]), 1e-3)
    assert found.balance == (-1 if faulty < 3 else 0)
    assert (float(found.vector.norm()) > 0) == (faulty < 3)


PLACES = st.sampled_from(
    [0.0, 1e-300, 1e-12, 1 - RAMP, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + RAMP, 1.5, 1e12]
)


@settings(deadline=None, max_examples=30)
@given(
    places=st.lists(PLACES | st.floats(0.5, 2.0), min_size=NUM, max_size=NUM),
    faults=st.dictionaries(
        st.integers(0, NUM - 1), st.sampled_from(["raises", "nan", "inf"]), max_size=3
    ),
    ratio=st.floats(1.01, 20.0),
    by_user=st.booleans(),
)
def test_one_unit_moves_gradient_and_vote_by_at_most_the_joint_norm(
    tiny_folders, places, faults, ratio, by_user
):
    """Norms at ``places`` times C: just below and above it, tiny, huge; and faults."""
    clip_norm, sigma = 0.7, 1.3
    users = USERS if by_user else None
    scaled = Scaled(tiny_folders["bert"], users=users, micro=5)
    for token, norm, place in scaled.each(places):
        scaled.factors[token] = place * clip_norm / norm
    for row, fault in faults.items():
        if fault == "raises":
            scaled.raising.add(FIRST + row)
        else:
            scaled.factors[FIRST + row] = float(fault)
    rule = QuantileClipping(0.5, sigma * ratio, 1e-3, 1e3)
    units = np.arange(4 if by_user else NUM)
    whole, joint = scaled.joined(units, clip_norm, rule, sigma)
    for unit in units:
        rest, _ = scaled.joined(np.delete(units, unit), clip_norm, rule, sigma)
        assert float((whole - rest).norm()) <= joint.norm * (1 + 1e-9)


def test_the_joint_norm_is_reached(tiny_folders):
    """So noise for the gradients alone, C in place of the joint norm, is too little."""
    clip_norm, sigma = 0.7, 1.3
    scaled = Scaled(tiny_folders["bert"])
    for token, norm, place in scaled.each([1.1] * NUM):
        scaled.factors[token] = place * clip_norm / norm
    rule = QuantileClipping(0.5, 1.5 * sigma, 1e-3, 1e3)
    whole, joint = scaled.joined(EVERYONE, clip_norm, rule, sigma)
    rest, _ = scaled.joined(EVERYONE[1:], clip_norm, rule, sigma)
    assert float((whole - rest).norm()) == pytest.approx(joint.norm, rel=1e-9)
    assert joint.norm > 1.3 * clip_norm


def test_a_batch_mate_cannot_turn_a_vote(tiny_folders):
    """A norm has other last bits in a pair than alone; C lies between both."""
    scaled = Scaled(tiny_folders["bert"], micro=2)
    scaled.mates = 1 + 1e-7
    clip_norm = float(scaled.norms[0]) * (1 + 5e-8)
    together = scaled.work.clipped_sum(np.arange(2), clip_norm).balance
    by_itself = scaled.work.clipped_sum(np.arange(1), clip_norm).balance
    other = balance_of(scaled.norms[1:2], clip_norm)
    assert together - other == pytest.approx(by_itself, abs=1e-4)
