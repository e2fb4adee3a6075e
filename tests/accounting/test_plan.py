"""The plan: its digest, its codec, its refusals and its default reserve."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.accounting.defaults import default_fault_reserve, default_interval
from pft_ray.accounting.events import (
    Composed,
    DiscreteGaussian,
    PoissonGaussian,
    Repeat,
)
from pft_ray.accounting.owners import Owner, Owners
from pft_ray.accounting.plan import (
    EvaluationPlan,
    Phase,
    Plan,
    UserLevel,
)
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.errors import PlanError

LOOKS = EvaluationPlan("classification", (40, 60), 1, 4.0, 1100, 3.0, 1e-5)
PLAN = Plan(
    unit="record",
    size=4150,
    sample_rate=512 / 4150,
    noise_multiplier=1.7325,
    phases=(Phase("head", 40, "head", 1.0), Phase("lora", 20, "adapter+head", 0.1)),
    fault_reserve=10,
    delta=1e-5,
    target_epsilon=3.0,
    num_shares=2,
    grant_size=5,
    checkpoint_interval=5,
    evaluation=LOOKS,
    relation_domain="raw",
    job_digest="00",
)
OTHER = {
    "unit": "user",
    "size": 4151,
    "sample_rate": 0.12,
    "noise_multiplier": 1.7326,
    "phases": (Phase("head", 60, "head", 1.0),),
    "fault_reserve": 11,
    "delta": 2e-5,
    "target_epsilon": None,
    "num_shares": 3,
    "grant_size": 4,
    "checkpoint_interval": 4,
    "evaluation": None,
    "relation_domain": "prepared",
    "job_digest": "01",
}
OTHER_PHASE = {
    "name": "x",
    "num_steps": 41,
    "trainable": "all",
    "clip_norm": 0.5,
    "clipping": "per_layer",
}
QUANTILE = QuantileClipping(0.5, 9.0, 0.01, 10.0)
ADAPTIVE = Phase("lora", 20, "adapter+head", 0.1, "adaptive", QUANTILE)
OTHER_QUANTILES = {
    "target": 0.6,
    "count_noise_multiplier": 8.0,
    "clip_norm_min": 0.02,
    "clip_norm_max": 9.0,
    "learning_rate": 0.1,
}
OTHER_LOOKS = {
    "kind": "causal_lm",
    "looks": (60,),
    "num_spare_looks": 2,
    "sigma": 4.1,
    "size": 1000,
    "epsilon": 2.0,
    "delta": 1e-6,
    "num_bins": 10,
    "loss_bound": 5.0,
    "loss_levels": 512,
}

USERS = UserLevel("uls", 4, 9000, "mean")
OTHER_USERS = {
    "kind": "els",
    "max_records_per_user": 5,
    "num_records": 9001,
    "contribution": "sum",
}
OTHER["user"] = USERS
OWNERS = Owners("sample", (Owner("a", 1150, 1.0, 0.05), Owner("b", 3000, 3.0, 0.15)))
OTHER["owners"] = OWNERS
OTHER["independent_workers"] = 2  # as many as PLAN has shares
OTHER["tolerate_missing"] = 1
OWNER = {"size": 1150, "epsilon": 1.0, "sample_rate": 0.05, "clip_scale": 0.9}
OTHER_OWNER = {
    "name": "c",
    "size": 1151,
    "epsilon": 1.1,
    "sample_rate": 0.06,
    "clip_scale": 0.5,
}

RECORD_PLANS = st.builds(
    Plan,
    unit=st.just("record"),
    size=st.integers(2, 10**6),
    sample_rate=st.floats(1e-6, 1.0),
    noise_multiplier=st.floats(0.1, 100.0),
    phases=st.lists(
        st.builds(
            Phase,
            name=st.text(max_size=5),
            num_steps=st.integers(1, 1000),
            trainable=st.sampled_from(["head", "adapter", "adapter+head", "all"]),
            clip_norm=st.floats(0.01, 10.0),
        )
        | st.builds(
            lambda name, clip_norm, target, sigma_b, rate: Phase(
                name,
                5,
                "head",
                clip_norm,
                "adaptive",
                QuantileClipping(target, sigma_b, 0.01, 10.0, rate),
            ),
            name=st.text(max_size=5),
            clip_norm=st.floats(0.01, 10.0),
            target=st.floats(0.01, 0.99),
            sigma_b=st.floats(100.5, 1e6),
            rate=st.floats(0.01, 2.0),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    fault_reserve=st.integers(0, 50),
    delta=st.floats(1e-12, 1e-7),
    target_epsilon=st.none() | st.floats(0.1, 10),
    evaluation=st.none() | st.just(LOOKS),
)
PLANS = RECORD_PLANS | st.builds(
    lambda plan, user: dataclasses.replace(plan, unit="user", user=user),
    RECORD_PLANS,
    st.builds(
        UserLevel,
        kind=st.sampled_from(["uls", "els"]),
        max_records_per_user=st.integers(1, 99),
        num_records=st.integers(1, 10**6),
        contribution=st.sampled_from(["mean", "sum"]),
    ),
)


PLANS |= st.builds(
    lambda plan, size, rates, missing: dataclasses.replace(
        plan,
        size=size + 1,
        num_shares=4,
        tolerate_missing=missing,
        owners=Owners(
            "sample", (Owner("a", 1, 1.0, rates[0]), Owner("b", size, 2.0, rates[1]))
        ),
    ),
    RECORD_PLANS,
    st.integers(1, 10**6),
    st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)),
    st.integers(0, 3),
)


@pytest.mark.parametrize("name", OTHER_OWNER)
def test_digest_changes_with_each_field_of_an_owner(name):
    """By scale, so that a clip scale may differ; sizes of the plan follow."""

    def plan(**change):
        owners = Owners(
            "scale",
            (
                Owner(**({"name": "a", **OWNER} | change)),
                Owner("b", 3000, 3.0, change.get("sample_rate", 0.05), 1.2),
            ),
        )
        return dataclasses.replace(PLAN, size=owners.size, owners=owners)

    assert set(OTHER_OWNER) == {field.name for field in dataclasses.fields(Owner)}
    assert plan(**{name: OTHER_OWNER[name]}).digest != plan().digest


def test_the_cases_below_cover_every_field():
    assert set(OTHER) == {field.name for field in dataclasses.fields(Plan)}
    phase = {field.name for field in dataclasses.fields(Phase)}
    assert set(OTHER_PHASE) | {"quantile"} == phase
    quantile = {field.name for field in dataclasses.fields(QuantileClipping)}
    assert set(OTHER_QUANTILES) == quantile
    names = {field.name for field in dataclasses.fields(EvaluationPlan)}
    assert set(OTHER_LOOKS) == names
    assert set(OTHER_USERS) == {field.name for field in dataclasses.fields(UserLevel)}


@pytest.mark.parametrize("name", OTHER)
def test_digest_changes_with_each_field(name):
    changes = {name: OTHER[name]}
    if name in ("unit", "user"):  # belong together
        changes = {"unit": "user", "user": USERS}
    plan = PLAN
    if name == "tolerate_missing":  # of owners
        plan = dataclasses.replace(PLAN, owners=OWNERS)
    assert dataclasses.replace(plan, **changes).digest != plan.digest


@pytest.mark.parametrize("name", OTHER_USERS)
def test_digest_changes_with_each_field_of_the_users(name):
    plan = dataclasses.replace(PLAN, unit="user", user=USERS)
    users = dataclasses.replace(USERS, **{name: OTHER_USERS[name]})
    assert dataclasses.replace(plan, user=users).digest != plan.digest


@pytest.mark.parametrize("name", OTHER_PHASE)
def test_digest_changes_with_each_field_of_a_phase(name):
    phase = dataclasses.replace(PLAN.phases[0], **{name: OTHER_PHASE[name]})
    changed = dataclasses.replace(PLAN, phases=(phase, *PLAN.phases[1:]))
    assert changed.digest != PLAN.digest


@pytest.mark.parametrize("name", OTHER_QUANTILES)
def test_digest_changes_with_each_field_of_a_quantile(name):
    plan = dataclasses.replace(PLAN, phases=(PLAN.phases[0], ADAPTIVE))
    moved = dataclasses.replace(QUANTILE, **{name: OTHER_QUANTILES[name]})
    phase = dataclasses.replace(ADAPTIVE, quantile=moved)
    changed = dataclasses.replace(plan, phases=(PLAN.phases[0], phase))
    assert len({PLAN.digest, plan.digest, changed.digest}) == 3


@pytest.mark.parametrize("name", OTHER_LOOKS)
def test_digest_changes_with_each_field_of_the_looks(name):
    looks = dataclasses.replace(LOOKS, **{name: OTHER_LOOKS[name]})
    assert dataclasses.replace(PLAN, evaluation=looks).digest != PLAN.digest


@settings(deadline=None)
@given(PLANS)
def test_codec_is_the_identity(plan):
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.digest == plan.digest


@given(PLANS, PLANS)
def test_equal_digests_mean_equal_plans(one, two):
    assert (one.digest == two.digest) == (one == two)


def test_ints_and_floats_give_one_digest():
    phases = (Phase("head", 40.0, "head", 1), *PLAN.phases[1:])
    same = dataclasses.replace(PLAN, phases=phases, target_epsilon=3)
    assert same == PLAN
    assert same.digest == PLAN.digest


def test_digest_is_stable():
    """A change of this value breaks every ledger: raise PLAN_VERSION with it."""
    assert PLAN.to_dict()["version"] == 1
    known = "46a8db25c18e3d5135c56cbd48dc21236f6456a60ac1d538b5907baaf7358dca"
    assert PLAN.digest == known


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "owner"},
        {"unit": "user"},
        {"user": UserLevel("uls", 4, 9000)},
        {"size": 0},
        {"size": "4150"},
        {"sample_rate": 0.0},
        {"sample_rate": 1.01},
        {"sample_rate": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": "1.0"},
        {"phases": ()},
        {"phases": (ADAPTIVE,), "noise_multiplier": 9.0},  # sigma_b is 9
        {"fault_reserve": -1},
        {"fault_reserve": 0.5},
        {"delta": 0.0},
        {"delta": 1 / 4150},
        {"target_epsilon": 0.0},
        {"num_shares": 0},
        {"relation_domain": "other"},
    ],
)
def test_plans_that_are_refused(change):
    with pytest.raises(PlanError):
        dataclasses.replace(PLAN, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "regression"},
        {"looks": ()},
        {"looks": (60, 40)},
        {"looks": (40, 40)},
        {"looks": (-1, 40)},
        {"num_spare_looks": -1},
        {"sigma": 0.0},
        {"size": 0},
        {"epsilon": math.inf},
        {"delta": 1e-3},
        {"num_bins": 19},
        {"loss_bound": 0.0},
        {"loss_levels": 0},
    ],
)
def test_looks_that_are_refused(change):
    with pytest.raises(PlanError):
        dataclasses.replace(LOOKS, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"unknown": 1},
        {"phases": [{"name": "a"}]},
        {"phases": ["a"]},
        {"phases": [{**PLAN.to_dict()["phases"][0], "quantile": None}]},
        {"phases": [{**PLAN.to_dict()["phases"][0], "quantile": {"target": 0.5}}]},
        {"phases": [{**PLAN.to_dict()["phases"][0], "clipping": "adaptive"}]},
        {"evaluation": {"kind": "classification"}},
        {"evaluation": {**LOOKS.__dict__, "extra": 1}},
        {"sample_rate": "0.5"},
    ],
)
def test_stored_plans_that_are_refused(change):
    with pytest.raises(PlanError):
        Plan.from_dict({**PLAN.to_dict(), **change})


def test_a_missing_field_is_refused():
    data = PLAN.to_dict()
    del data["phases"]
    with pytest.raises(PlanError):
        Plan.from_dict(data)


def test_what_is_charged_is_what_is_planned():
    assert PLAN.num_steps == 60
    assert PLAN.num_steps_max == 70
    step = PoissonGaussian(512 / 4150, 1.7325)
    assert PLAN.event == Repeat(step, 70)
    assert PLAN.expected_batch_size == pytest.approx(512)
    assert LOOKS.event == Repeat(Repeat(DiscreteGaussian(4.0, 1), 2), 3)
    assert PLAN.complete_event == Composed((PLAN.event, LOOKS.event))
    losses = dataclasses.replace(LOOKS, kind="causal_lm")
    assert losses.look_event == DiscreteGaussian(4.0 * 1024, 1024)


def test_an_adaptive_phase_is_charged_like_any_other():
    """The count shares the step's event: sigma stays that of the event."""
    adaptive = dataclasses.replace(PLAN, phases=(PLAN.phases[0], ADAPTIVE))
    assert adaptive.event == PLAN.event
    assert adaptive.to_dict()["phases"][1]["quantile"]["target"] == 0.5
    assert "quantile" not in adaptive.to_dict()["phases"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"clipping": "flat"},
        {"clipping": "automatic"},
        {"clipping": "per_layer"},
        {"quantile": None},
        {"clip_norm": 0.009},
        {"clip_norm": 10.1},
    ],
)
def test_adaptive_phases_that_are_refused(change):
    with pytest.raises(PlanError):
        dataclasses.replace(ADAPTIVE, **change)


def test_phases_partition_the_steps():
    assert [PLAN.phase_at(step)[0] for step in (0, 39, 40, 59)] == [0, 0, 1, 1]
    assert PLAN.phase_end(0) == 40
    assert PLAN.phase_end(40) == 60
    with pytest.raises(PlanError):
        PLAN.phase_at(60)


@pytest.mark.parametrize(
    ("num_steps", "interval", "grant", "reserve"),
    [(60, 5, 5, 10), (2344, 5, 5, 118), (1, 1, 1, 2), (41, 1, 1, 3), (1000, 60, 5, 65)],
)
def test_default_reserve(num_steps, interval, grant, reserve):
    """max(ceil(T / 20), checkpoint interval + grant size)."""
    assert default_fault_reserve(num_steps, interval, grant) == reserve


@pytest.mark.parametrize(
    ("num_steps", "interval"), [(1, 1), (19, 1), (40, 2), (60, 3), (100, 5), (9999, 5)]
)
def test_default_interval(num_steps, interval):
    """max(1, min(5, T // 20))."""
    assert default_interval(num_steps) == interval
