"""From a job to its plan: every number is checked against one computed elsewhere."""

from __future__ import annotations

from pathlib import Path

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant

from pft_ray.accounting.accountants import epsilon
from pft_ray.config import build_job, build_plan, read_job
from pft_ray.config.build import job_digest
from tests.tiny_job import job_dict

SIGMA = {"privacy__epsilon": None, "privacy__noise_multiplier": 1.0}


def job(**changes):
    return read_job(job_dict(**changes))


def library_epsilon(event, delta):
    """Epsilon by dp-accounting's own accountant, without this project's code."""
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    return accountant.compose(event).get_epsilon(delta)


@pytest.fixture(scope="module")
def built():
    """The tiny job with sigma 1: 8 + 8 steps, batch 60 of 300, intervals 4 and 2."""
    return build_job(job(**SIGMA), Path("/base"))


def test_the_plan_holds_the_numbers_of_the_job(built):
    plan = built.plan
    assert (plan.unit, plan.size, plan.sample_rate) == ("record", 300, 0.2)
    assert (plan.noise_multiplier, plan.delta) == (1.0, 1e-5)
    assert (plan.num_steps, plan.fault_reserve, plan.num_steps_max) == (16, 6, 22)
    assert (plan.checkpoint_interval, plan.grant_size, plan.num_shares) == (4, 2, 1)
    assert plan.expected_batch_size == pytest.approx(60)
    assert plan.target_epsilon is None
    assert [(p.name, p.num_steps, p.trainable, p.clip_norm) for p in plan.phases] == [
        ("head", 8, "head", 1.0),
        ("lora", 8, "adapter+head", 0.5),
    ]
    assert plan.job_digest == job_digest(built.job)


def test_epsilon_is_that_of_all_paid_steps(built):
    step = dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(1.0))
    paid = library_epsilon(dp.SelfComposedDpEvent(step, 22), 1e-5)
    planned = library_epsilon(dp.SelfComposedDpEvent(step, 16), 1e-5)
    assert built.epsilon == pytest.approx(paid, rel=1e-3)
    assert built.epsilon > planned * 1.05


def test_envelopes_hold_what_was_priced(built):
    training, looks = built.envelopes
    assert (training.block, training.purpose) == ("tiny-data/train", "training")
    assert (looks.block, looks.purpose) == ("tiny-data/validation", "evaluation")
    assert built.epsilon <= training.epsilon < built.epsilon + 1e-8
    assert (training.delta, looks.delta) == (1e-5, 1e-5)
    assert training.event == built.plan.event
    assert looks.event == built.plan.evaluation.event


def test_a_target_is_met_and_not_by_much():
    plan, found = build_plan(job(privacy__epsilon=4, evaluation__epsilon=1.5))
    assert plan.target_epsilon == 4
    assert 3.99 < found <= 4
    step = dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(plan.noise_multiplier))
    assert library_epsilon(dp.SelfComposedDpEvent(step, 22), 1e-5) <= 4.004
    less = dp.PoissonSampledDpEvent(
        0.2, dp.GaussianDpEvent(plan.noise_multiplier * 0.98)
    )
    assert library_epsilon(dp.SelfComposedDpEvent(less, 22), 1e-5) > 4.004
    envelope = build_job(job(privacy__epsilon=4), Path()).envelopes[0]
    assert envelope.epsilon == 4


def test_looks_share_the_epsilon_of_the_evaluation():
    """Two looks and a spare, two histograms each: six counts of sensitivity one."""
    plan, _ = build_plan(job(**SIGMA, evaluation__epsilon=2.0))
    looks = plan.evaluation
    assert (looks.looks, looks.num_looks_max, looks.size) == ((8, 16), 3, 100)
    assert (looks.epsilon, looks.delta, looks.kind) == (2.0, 1e-5, "classification")
    # For such sigma the discrete Gaussian is priced like the continuous one.
    counts = dp.SelfComposedDpEvent(dp.GaussianDpEvent(looks.sigma), 6)
    assert library_epsilon(counts, 1e-5) == pytest.approx(2.0, rel=0.01)
    assert epsilon(looks.event, 1e-5) <= 2.0


def test_looks_default_to_the_target_of_training():
    plan, _ = build_plan(job(privacy__epsilon=4))
    assert plan.evaluation.epsilon == 4
    plan, _ = build_plan(job(evaluation__looks=[4, 12], evaluation__spare_looks=0))
    assert (plan.evaluation.looks, plan.evaluation.num_looks_max) == ((4, 12), 2)


def test_looks_may_have_a_delta_of_their_own():
    built = build_job(job(**SIGMA, evaluation__delta=1e-6), Path())
    assert (built.plan.delta, built.plan.evaluation.delta) == (1e-5, 1e-6)
    assert [envelope.delta for envelope in built.envelopes] == [1e-5, 1e-6]


def without_evaluation(**changes):
    data = job_dict(**SIGMA, **changes)
    data["evaluation"] = None
    return read_job(data)


def test_no_evaluation_no_looks_and_no_envelope():
    built = build_job(without_evaluation(), Path())
    assert built.plan.evaluation is None
    assert [envelope.purpose for envelope in built.envelopes] == ["training"]


PHASE = job_dict()["training"]["phases"][0] | {"trainable": "all"}

# Steps, interval and grant given: expected interval, grant and reserve.
RESERVES = {
    "short": (10, None, None, (1, 1, 2)),
    "sixty": (60, None, None, (3, 3, 6)),
    "long": (2000, None, None, (5, 5, 100)),
    "rounded-up": (2001, None, None, (5, 5, 101)),
    "interval": (60, 5, 5, (5, 5, 10)),
    "grant": (60, 10, None, (10, 3, 13)),
}


@pytest.mark.parametrize("case", RESERVES.values(), ids=RESERVES)
def test_intervals_and_reserve_by_default(case):
    steps, interval, grant, expected = case
    plan, _ = build_plan(
        without_evaluation(
            training__phases=[PHASE | {"steps": steps}],
            training__checkpoint_interval=interval,
            training__grant_size=grant,
            model__lora=None,
        )
    )
    found = (plan.checkpoint_interval, plan.grant_size, plan.fault_reserve)
    assert found == expected
    assert plan.num_steps_max == steps + expected[2]


def test_a_reserve_that_is_given_is_taken_also_when_zero():
    plan, _ = build_plan(without_evaluation(privacy__fault_reserve=0))
    assert (plan.fault_reserve, plan.num_steps_max) == (0, 16)


def test_a_rate_of_one_takes_everybody():
    plan, _ = build_plan(
        without_evaluation(training__batch_size=None, training__sample_rate=1.0)
    )
    assert (plan.sample_rate, plan.expected_batch_size) == (1.0, 300)


@pytest.mark.parametrize(
    ("mode", "domain"),
    [("none", "raw"), ("exact", "prepared"), ("beforehand", "prepared")],
)
def test_preparation_across_units_is_stated(mode, domain):
    plan, _ = build_plan(without_evaluation(data__deduplicate=mode))
    assert plan.relation_domain == domain


# The digest is stored in ledgers: it may only change with the format's version.
DIGEST = "7cdb022def8acb8553fbbd0eda02ec7f56fe3595f6317e44cc842e01c23b77f0"
OUTSIDE = {
    "name": {"name": "other"},
    "workers": {"cluster__workers": 2, "cluster__cpus_per_worker": 0.25},
    "address": {"cluster__address": "10.0.0.1:6379"},
    "failures": {"cluster__max_failures": 0, "cluster__placement_timeout_s": 1.0},
    "ledger": {"ledger__url": "elsewhere.db"},
    "output": {"output": "elsewhere"},
    "memory": {"training__memory_limit_gib": 2.5},
    "checkpointing": {"model__gradient_checkpointing": True},
    "rslora, as before": {"model__lora__rslora": False},
    "no dropout, as before": {"model__dropout": False, "model__lora__dropout": 0.0},
    "fp32, as before": {"training__autocast": None},
}
INSIDE = {
    "path": {"data__path": "other.csv"},
    "salt": {"data__split__salt": "2"},
    "max-length": {"data__max_length": 13},
    "model": {"model__path": "other"},
    "rank": {"model__lora__rank": 3},
    "rslora": {"model__lora__rslora": True},
    "bias": {"model__lora__bias": "all"},
    "whole-modules": {"model__lora__modules_to_save": ["embeddings"]},
    "dropout": {"model__dropout": True},
    "dropout of adapters": {"model__lora__dropout": 0.05},
    "autocast": {"training__autocast": "bf16"},
    "delta": {"privacy__delta": 1e-6},
    "epsilon": {"privacy__epsilon": 8.5},
    "seed": {"training__seed": 1},
    "optimizer": {"training__optimizer": "sgd"},
    "bins": {"evaluation__num_bins": 10},
}


def test_the_digest_is_the_one_of_this_format():
    assert job_digest(job()) == DIGEST


@pytest.mark.parametrize("changes", OUTSIDE.values(), ids=OUTSIDE)
def test_where_a_job_runs_is_not_part_of_its_digest(changes):
    assert job_digest(job(**changes)) == DIGEST


@pytest.mark.parametrize("changes", INSIDE.values(), ids=INSIDE)
def test_what_shapes_a_run_is_part_of_its_digest(changes):
    assert job_digest(job(**changes)) != DIGEST


def test_with_fixed_shares_the_whole_plan_is_the_same_on_any_cluster():
    """One share a worker by default: the number of shares is part of the plan."""
    fixed = {"training__noise_shares": 4, "cluster__cpus_per_worker": 0.1}
    plans = [
        build_plan(without_evaluation(**fixed, cluster__workers=workers))[0]
        for workers in (1, 4)
    ]
    assert plans[0].digest == plans[1].digest
    assert plans[0].num_shares == 4
    moving = build_plan(without_evaluation(cluster__workers=4))[0]
    assert moving.num_shares == 4
    assert build_plan(without_evaluation())[0].digest != moving.digest


def test_paths_start_from_the_folder_of_the_job(built):
    assert built.base_dir == Path("/base")
    assert built.output_dir == Path("/base/runs")
    assert built.job.data.spec(built.base_dir).path == Path("/base/data.csv")
