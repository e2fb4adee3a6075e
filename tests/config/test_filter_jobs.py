"""Jobs on filter blocks: keys, prices at the order, digests that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from pft_ray.accounting.filters import budget_units, rho_units
from pft_ray.config import build_job, read_job
from pft_ray.config.build import job_digest
from pft_ray.errors import ConfigError, PlanError
from tests.tiny_job import job_dict

FILTER = {"privacy__accounting": "filter"}


def built(**changes):
    return build_job(read_job(job_dict(**(FILTER | changes))), Path("/"))


def test_the_noise_is_the_least_that_fits_the_order():
    job = built()
    train, looks = job.shares
    assert job.envelopes == ()
    for share in (train, looks):
        order = job.orders[share.block]
        budget = budget_units(8.0, 1e-5, order)
        assert budget * (1 - 1e-3) < share.rho_units <= budget
    assert train.rho_units == rho_units(job.plan.event, job.orders[train.block])
    assert 7.99 < job.epsilon <= 8
    # One order costs more noise than PLD, never less.
    by_plan = build_job(read_job(job_dict()), Path("/"))
    assert job.plan.noise_multiplier > by_plan.plan.noise_multiplier
    assert job.plan.evaluation.sigma > by_plan.plan.evaluation.sigma


def test_a_named_order_is_kept_and_purposes_are_the_jobs():
    section = {"order": 5, "purpose": "tuning/trial-3", "evaluation_order": 6}
    job = built(privacy__filter=section)
    assert job.orders == {"tiny-data/train": 5, "tiny-data/validation": 6}
    assert [share.purpose for share in job.shares] == ["tuning/trial-3", "evaluation"]
    best = built()
    assert job.plan.noise_multiplier > best.plan.noise_multiplier


def test_a_given_noise_multiplier_is_priced_at_the_order():
    job = built(privacy__epsilon=None, privacy__noise_multiplier=2.0)
    order = job.orders["tiny-data/train"]
    costs = {
        n: built(
            privacy__epsilon=None,
            privacy__noise_multiplier=2.0,
            privacy__filter={"order": n},
        ).epsilon
        for n in (order - 1, order, order + 1)
    }
    assert min(costs, key=costs.get) == order
    assert job.epsilon == costs[order]


def test_independent_workers_pay_for_all_of_them():
    one = built(privacy__epsilon=None, privacy__noise_multiplier=3.0)
    two = built(
        privacy__epsilon=None,
        privacy__noise_multiplier=3.0,
        privacy__mode="sequential",
        cluster__workers=2,
        privacy__filter={"order": one.orders["tiny-data/train"]},
    )
    assert two.shares[0].rho_units == 2 * one.shares[0].rho_units


def test_plan_jobs_keep_the_digest_they_had():
    spelled = job_dict(privacy__accounting="plan", privacy__filter=None)
    assert job_digest(read_job(spelled)) == job_digest(read_job(job_dict()))
    assert job_digest(read_job(job_dict(**FILTER))) != job_digest(read_job(spelled))


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__accounting": "plan", "privacy__filter": {}},
        {"privacy__filter": {"order": 1}},
        {"privacy__filter": {"order": 2.5}},
        {"privacy__filter": {"purpose": "evaluation/x"}},
        {"privacy__filter": {"purpose": "No Path"}},
        {"privacy__filter": {"evaluation_purpose": "training"}},
        {"privacy__accounting": "both"},
        {"privacy__block": "one", "evaluation__block": "one"},
        {
            "privacy__unit": "user",
            "privacy__user_level": "auto",
            "privacy__max_records_per_user": 4,
            "privacy__num_train_records": 300,
            "data__user": "sender",
        },
        {
            "privacy__mode": "owners",
            "privacy__epsilon": None,
            "privacy__owners": {
                "field": "sender",
                "members": [{"name": n, "size": 150, "epsilon": 2.0} for n in "ab"],
            },
        },
    ],
)
def test_jobs_that_are_refused(changes):
    with pytest.raises(ConfigError):
        read_job(job_dict(**(FILTER | changes)))


def test_an_order_too_small_for_the_target_is_refused():
    with pytest.raises(PlanError, match="order 2"):
        built(privacy__epsilon=1.0, privacy__filter={"order": 2})
