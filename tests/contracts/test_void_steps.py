"""A step whose ranks do not agree draws nothing: no noise key of it is ever used."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pft_ray.accounting.plan import Phase, Plan
from pft_ray.crypto import derive_key
from pft_ray.errors import VoidStepError
from pft_ray.mechanisms import SampledGaussian, assign_shares
from pft_ray.training.step import PrivateStep, StepKeys
from pft_ray.training.types import ClippedSum
from tests.training.ranks import Ranks


@dataclass
class Trace:
    """What a rank did, in order."""

    done: list[str] = field(default_factory=list)

    def clipped_sum(self, positions, clip_norm):
        self.done.append("sum")
        return ClippedSum(torch.zeros(4, dtype=torch.float64), clip_norm)

    def apply(self, grad):
        self.done.append("apply")


def make_plan(**changes) -> Plan:
    fields = {
        "unit": "record",
        "size": 100,
        "sample_rate": 0.1,
        "noise_multiplier": 1.0,
        "phases": (Phase("one", 4, "head", 1.0), Phase("two", 4, "head", 1.0)),
        "fault_reserve": 0,
        "delta": 1e-5,
        "num_shares": 3,
    }
    return Plan(**(fields | changes))


def make_keys(rank: int, shares=None, attempt: int = 1, step: int = 0) -> StepKeys:
    shares = assign_shares(3, 3, rank) if shares is None else shares
    keys = tuple(derive_key(bytes(32), "noise", index) for index, _ in shares)
    return StepKeys(attempt, step, bytes(32), shares, keys)


def run_ranks(steps: list[tuple[Plan, StepKeys]]) -> tuple[list[Trace], list]:
    """Runs one step on as many ranks as there are plans and keys."""
    group = Ranks(len(steps))
    traces = [Trace() for _ in steps]
    errors: list = [None] * len(steps)

    def live(rank: int) -> None:
        plan, keys = steps[rank]
        trace, mechanism = traces[rank], SampledGaussian.from_plan(plan)

        class Spied:
            sample = mechanism.sample

            @staticmethod
            def share(*args):
                trace.done.append("draw")
                return mechanism.share(*args)

        inner = group.of(rank)

        class Collective:
            gather = inner.gather

            @staticmethod
            def reduce(share):
                trace.done.append("send")
                return inner.reduce(share)

        step = PrivateStep(
            plan, Spied(), trace, np.zeros((0, 16), dtype=np.uint8), Collective()
        )
        try:
            step.run(keys)
        except VoidStepError as error:
            errors[rank] = error

    threads = [
        threading.Thread(target=live, args=(r,), daemon=True) for r in range(len(steps))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return traces, errors


def test_a_step_of_agreeing_ranks_is_made_in_order():
    traces, errors = run_ranks([(make_plan(), make_keys(rank)) for rank in range(3)])
    assert errors == [None] * 3
    assert [t.done for t in traces] == [["sum", "draw", "send", "apply"]] * 3


DISAGREEMENTS = {
    "a rank of three is missing": [
        (make_plan(), make_keys(0)),
        (make_plan(), make_keys(1)),
    ],
    "a share is held twice": [
        (make_plan(), make_keys(0, shares=((0, 1), (1, 1)))),
        (make_plan(), make_keys(1, shares=((1, 1), (2, 1)))),
    ],
    "a share twice makes up for a missing one": [
        (make_plan(), make_keys(0, shares=((0, 1), (1, 1)))),
        (make_plan(), make_keys(1, shares=((1, 1),))),
    ],
    "a rank holds one share twice": [
        (make_plan(), make_keys(0, shares=((0, 1), (0, 1)))),
        (make_plan(), make_keys(1, shares=((1, 1), (2, 1)))),
    ],
    "a share that the plan does not have": [
        (make_plan(), make_keys(0, shares=((0, 1), (1, 1)))),
        (make_plan(), make_keys(1, shares=((3, 1),))),
    ],
    "a share without noise": [
        (make_plan(), make_keys(0, shares=((0, 1), (1, 2)))),
        (make_plan(), make_keys(1, shares=((2, 0),))),
    ],
    "another attempt": [
        (make_plan(), make_keys(0)),
        (make_plan(), make_keys(1, attempt=2)),
        (make_plan(), make_keys(2)),
    ],
    "another step": [
        (make_plan(), make_keys(0)),
        (make_plan(), make_keys(1)),
        (make_plan(), make_keys(2, step=1)),
    ],
    "another phase": [
        (make_plan(), make_keys(0, step=4)),
        (make_plan(), make_keys(1, step=3)),
        (make_plan(), make_keys(2, step=4)),
    ],
    "another clip norm": [
        (make_plan(), make_keys(0)),
        (make_plan(phases=(Phase("one", 8, "head", 2.0),)), make_keys(1)),
        (make_plan(), make_keys(2)),
    ],
    "another noise multiplier": [
        (make_plan(), make_keys(0)),
        (make_plan(noise_multiplier=0.5), make_keys(1)),
        (make_plan(), make_keys(2)),
    ],
    "other settings of the job": [
        (make_plan(job_digest="one"), make_keys(0)),
        (make_plan(job_digest="one"), make_keys(1)),
        (make_plan(job_digest="two"), make_keys(2)),
    ],
}


@pytest.mark.parametrize("ranks", DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_ranks_that_disagree_draw_nothing_and_send_nothing(ranks):
    traces, errors = run_ranks(ranks)
    assert all(isinstance(error, VoidStepError) for error in errors)
    assert [trace.done for trace in traces] == [["sum"]] * len(ranks)
