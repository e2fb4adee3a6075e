"""Adaptive clipping from the job file to the plan: defaults, prices and refusals."""

from __future__ import annotations

import pytest

from pft_ray.config import build_plan, read_job
from pft_ray.config.build import job_digest
from pft_ray.errors import ConfigError, PftError, PlanError
from tests.tiny_job import job_dict


def job(quantile=None, *, clipping="adaptive", **changes):
    """The tiny job with a given sigma, its second phase adaptive."""
    changes = {"privacy__epsilon": None, "privacy__noise_multiplier": 1.5} | changes
    data = job_dict(evaluation=None, **changes)
    data["evaluation"] = None
    phase = data["training"]["phases"][1] | {"clipping": clipping}
    if quantile is not None:
        phase["quantile"] = quantile
    data["training"]["phases"][1] = phase
    return read_job(data)


def rule_of(spec):
    plan, _ = build_plan(spec)
    assert plan.phases[0].quantile is None
    assert plan.phases[1].clipping == "adaptive"
    return plan.phases[1].quantile


def test_every_default_is_written_into_the_plan():
    for spec in (job(), job({})):
        rule = rule_of(spec)
        assert (rule.target, rule.learning_rate) == (0.5, 0.2)
        assert rule.count_noise_multiplier == pytest.approx(1.5 * 7.1240, rel=1e-4)
        assert (rule.clip_norm_min, rule.clip_norm_max) == (0.5 / 1024, 512.0)


def test_what_is_given_is_taken():
    given = {
        "target": 0.8,
        "learning_rate": 0.1,
        "count_noise_multiplier": 4.0,
        "clip_norm_min": 0.05,
        "clip_norm_max": 5.0,
    }
    rule = rule_of(job(given))
    assert {name: getattr(rule, name) for name in given} == given


def test_the_price_is_that_of_the_same_job_with_a_fixed_c():
    """The count is paid with noise on the gradients, not with epsilon."""
    adaptive, epsilon = build_plan(job())
    fixed, same = build_plan(job(clipping="flat"))
    assert adaptive.event == fixed.event
    assert epsilon == same
    assert adaptive.digest != fixed.digest


def test_a_calibrated_sigma_is_that_of_the_event():
    changes = {"privacy__epsilon": 8.0, "privacy__noise_multiplier": None}
    adaptive, _ = build_plan(job(**changes))
    fixed, _ = build_plan(job(clipping="flat", **changes))
    assert adaptive.noise_multiplier == fixed.noise_multiplier
    rule = adaptive.phases[1].quantile
    sigma = fixed.noise_multiplier
    assert rule.gradient_noise_multiplier(sigma) == pytest.approx(1.01 * sigma)


def test_the_digest_of_a_job_follows_the_quantile():
    digests = {
        job_digest(spec)
        for spec in (
            job(clipping="flat"),
            job(),
            job({"target": 0.6}),
            job({"learning_rate": 0.1}),
            job({"clip_norm_max": 2.0}),
        )
    }
    assert len(digests) == 5


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per_layer"])
def test_a_quantile_is_for_adaptive_clipping_alone(clipping):
    with pytest.raises(ConfigError) as caught:
        job({"target": 0.5}, clipping=clipping)
    assert clipping in caught.value.message
    assert "adaptive" in caught.value.fix


@pytest.mark.parametrize(
    "quantile",
    [
        {"target": 0},
        {"target": 1},
        {"target": 1.5},
        {"target": "half"},
        {"target": float("nan")},
        {"learning_rate": 0},
        {"learning_rate": -1.0},
        {"count_noise_multiplier": 0.0},
        {"clip_norm_min": 0.0},
        {"clip_norm_max": -1.0},
        {"gamma": 0.5},
    ],
    ids=str,
)
def test_quantiles_that_are_refused(quantile):
    with pytest.raises(PftError):
        job(quantile)


@pytest.mark.parametrize(
    ("quantile", "says"),
    [
        ({"count_noise_multiplier": 1.5}, "noise multiplier 1.5"),
        ({"count_noise_multiplier": 0.5}, "noise multiplier 1.5"),
        ({"clip_norm_min": 0.51}, "clip_norm 0.5 is not between"),
        ({"clip_norm_max": 0.49}, "clip_norm 0.5 is not between"),
    ],
)
def test_plans_that_are_refused(quantile, says):
    with pytest.raises(PlanError, match=says):
        build_plan(job(quantile))
