"""Votes on the clip norm, and a C that ends where the quantile is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.accounting.plan import Phase
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.errors import ResumeError
from pft_ray.training.clip_norms import RAMP, ClipNorms, balance_of

NORMS = st.floats(0, allow_infinity=True) | st.just(math.nan)


def adaptive(target=0.5, clip_norm=1.0, name="one", **changes):
    fields = {"clip_norm_min": 1e-3, "clip_norm_max": 1e3} | changes
    quantile = QuantileClipping(target, 8.0, **fields)
    return Phase(name, 10, "head", clip_norm, "adaptive", quantile)


def balance(*norms, clip_norm=2.0):
    return balance_of(torch.tensor(norms, dtype=torch.float64), clip_norm)


def test_votes_are_one_within_and_minus_one_beyond():
    assert balance() == 0
    assert balance(0.0) == balance(1.9) == 1
    assert balance(2.1) == balance(1e300) == balance(math.inf) == -1
    assert balance(0.0, 1.0, 1.9, 2.1) == 2
    assert balance(0.1, 5.0, math.nan) == 0, "a faulty unit has no vote"


def test_near_c_a_vote_falls_in_a_straight_line():
    assert balance(2.0) == 0
    assert balance(2.0 * (1 - RAMP)) == 1
    assert balance(2.0 * (1 + RAMP)) == -1
    assert balance(2.0 * (1 + RAMP / 4)) == pytest.approx(-0.25)


@given(st.lists(NORMS, max_size=20), NORMS, st.floats(1e-9, 1e9))
def test_one_unit_moves_the_balance_by_at_most_one(others, norm, clip_norm):
    rest = balance(*others, clip_norm=clip_norm)
    assert abs(balance(*others, norm, clip_norm=clip_norm) - rest) <= 1 + 1e-12


@given(st.floats(1e-6, 1e6), st.floats(-1e-6, 1e-6), st.floats(1e-3, 1e3))
def test_the_last_bits_of_a_norm_are_not_a_whole_vote(norm, change, clip_norm):
    """Norms may differ in their last bits with the micro-batch; votes must not jump."""
    moved = balance(norm * (1 + change), clip_norm=clip_norm)
    largest = abs(change) / RAMP * (1 + RAMP) / (1 - abs(change)) + 1e-9
    assert abs(moved - balance(norm, clip_norm=clip_norm)) <= largest


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 30.0])
def test_c_ends_at_the_quantile_of_the_norms(target, start):
    """Without noise, and with everybody in every step."""
    norms = torch.from_numpy(np.random.default_rng(1).lognormal(0.0, 0.5, 5000))
    state = ClipNorms((adaptive(target, start, learning_rate=0.5),))
    for _ in range(400):
        share = 0.5 + balance_of(norms, state.now[0]) / (2 * len(norms))
        state.made(0, share)
    assert state.now[0] == pytest.approx(float(norms.quantile(target)), rel=0.02)
    within = float((norms <= state.now[0]).double().mean())
    assert within == pytest.approx(target, abs=0.01)


def test_c_stays_near_the_quantile_under_noise():
    """Batches of 100 of 1000 units, the count's noise 3.6 deviations of one unit."""
    rng = np.random.default_rng(2)
    norms = torch.from_numpy(rng.lognormal(0.0, 0.5, 1000))
    state = ClipNorms((adaptive(0.5, 20.0),))
    for _ in range(400):
        drawn = norms[torch.from_numpy(rng.random(1000) < 0.1)]
        noisy = balance_of(drawn, state.now[0]) + 2 * 3.6 * rng.standard_normal()
        state.made(0, 0.5 + noisy / 200)
    late = np.array(state.used[200:])
    median = float(norms.median())
    assert np.abs(np.log(late / median)).max() < 0.25
    assert np.log(late / median).mean() == pytest.approx(0, abs=0.06)


def test_each_phase_starts_at_its_own_c_and_moves_alone():
    phases = (adaptive(0.5, 1.0), Phase("two", 5, "head", 0.3), adaptive(0.9, 2.0, "x"))
    state = ClipNorms(phases)
    assert state.now == [1.0, 0.3, 2.0]
    state.made(0, 1.0)
    state.made(1, None)
    state.made(2, 0.0)
    assert state.used == [1.0, 0.3, 2.0]
    assert state.now[0] < 1.0
    assert state.now[1] == 0.3
    assert state.now[2] > 2.0


def test_a_plan_without_adaptive_phases_keeps_its_checkpoints_as_they_were():
    state = ClipNorms((Phase("one", 5, "head", 0.3),))
    state.made(0, None)
    assert state.state() == {}
    assert state.to_dict() is None
    state.load_state({}, 3)
    assert state.now == [0.3]


def made(num_steps=3):
    state = ClipNorms((adaptive(0.5, 1.0), Phase("two", 5, "head", 0.3)))
    for step in range(num_steps):
        state.made(0, 0.1 * step)
    return state


def test_the_state_comes_back_bit_by_bit():
    before, after = made(), made(0)
    after.load_state(before.state(), 3)
    assert (after.now, after.used) == (before.now, before.used)
    assert after.to_dict() == {"now": before.now, "used": before.used}
    before.made(0, 0.7)
    after.made(0, 0.7)
    assert after.now == before.now


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"clip_norms/now": None}, 3),
        ({"clip_norms/used": None}, 3),
        ({"clip_norms/now": [1.0]}, 3),
        ({"clip_norms/now": [1.0, 0.4]}, 3),
        ({"clip_norms/now": [1e-4, 0.3]}, 3),
        ({"clip_norms/now": [1001.0, 0.3]}, 3),
        ({"clip_norms/now": [math.nan, 0.3]}, 3),
        ({}, 4),
        ({}, 2),
    ],
)
def test_states_that_do_not_fit_are_refused(change, step):
    tensors = made().state()
    for name, values in change.items():
        if values is None:
            del tensors[name]
        else:
            tensors[name] = torch.tensor(values, dtype=torch.float64)
    with pytest.raises(ResumeError):
        made(0).load_state(tensors, step)
