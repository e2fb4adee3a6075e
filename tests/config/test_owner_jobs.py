"""Jobs with owners: what has to be declared, and what must not be said together."""

from __future__ import annotations

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.config import build_job, job_schema, read_job
from pft_ray.config.build import job_digest
from pft_ray.errors import ConfigError
from tests.tiny_job import job_dict

MEMBERS = [
    {"name": "a", "size": 100, "epsilon": 2.0},
    {"name": "b", "size": 200, "epsilon": 6.0},
]
OWNERS = {
    "privacy__mode": "owners",
    "privacy__epsilon": None,
    "privacy__owners": {"field": "sender", "salt": "o", "members": MEMBERS},
}


def test_what_is_reserved_is_each_owners_own(tmp_path):
    job = read_job(job_dict(**OWNERS))
    built = build_job(job, tmp_path)
    first, second, looks = built.envelopes
    assert (first.epsilon, second.epsilon, looks.epsilon) == (2.0, 6.0, 2.0)
    assert [e.block for e in built.envelopes] == [
        "tiny-data/train/a",
        "tiny-data/train/b",
        "tiny-data/validation",
    ]
    plan = built.plan
    assert first.event == plan.owner_event(0) != plan.event
    assert second.event == plan.owner_event(1) == plan.event
    assert built.training_block == second.block, "the one whose units lose most"
    assert built.block_owners == {first.block: "a", second.block: "b"}
    assert plan.target_epsilon == 6.0
    for number, most in enumerate((2.0, 6.0)):
        spent = epsilon(plan.owner_event(number), plan.delta)
        assert 0.998 * most < spent <= most
        assert epsilon(looks.event, 1e-5) <= most, "a validation unit has an owner"
    assert plan.num_steps_max == plan.num_steps + plan.fault_reserve > plan.num_steps
    assert plan.expected_batch_size == pytest.approx(60)


def test_a_job_without_owners_keeps_its_digest(tmp_path):
    job = read_job(job_dict())
    said = read_job(job_dict(privacy__mode="central"))
    assert job_digest(said) == job_digest(job)
    assert "owners" not in build_job(job, tmp_path).plan.to_dict()
    owned = read_job(job_dict(**OWNERS))
    other = {**OWNERS["privacy__owners"], "salt": "p"}
    moved = read_job(job_dict(**(OWNERS | {"privacy__owners": other})))
    assert len({job_digest(j) for j in (job, owned, moved)}) == 3


def changed(**change):
    return {"privacy__owners": OWNERS["privacy__owners"] | change}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"privacy__mode": "central"}, "privacy.owners is given"),
        ({"privacy__owners": None}, "privacy.owners is missing"),
        ({"privacy__epsilon": 3.0}, "privacy.epsilon is given"),
        ({"privacy__noise_multiplier": 3.0}, "noise_multiplier is given"),
        ({"data__num_train": 301}, "declare 300 units"),
        ({"training__baseline": True, "data__public": True}, "baseline"),
        ({"evaluation__epsilon": 2.1}, "smallest of the"),
        ({"evaluation__delta": 1.1e-5}, "no larger delta"),
        ({"evaluation__block": "tiny-data/train/b"}, "both an owner's and the"),
        (changed(field="text"), "both the content and the owner"),
        (changed(members=MEMBERS[:1]), "members"),
        (changed(members=[MEMBERS[0], MEMBERS[0]]), "two owners of one name"),
        (changed(method="both"), "method"),
        (changed(colluding=-1), "colluding"),
        (
            {
                "privacy__unit": "user",
                "data__user": "id",
                "privacy__max_records_per_user": 1,
                "privacy__num_train_records": 300,
            },
            "two owners",
        ),
    ],
)
def test_jobs_that_are_refused(change, says):
    read_job(job_dict(**OWNERS))
    with pytest.raises(ConfigError, match=says):
        read_job(job_dict(**(OWNERS | change)))


def test_the_schema_names_every_key():
    text = str(job_schema())
    for key in ("owners", "colluding", "members", "salt"):
        assert key in text
