"""Jobs with sizes that move and with failure rates."""

from __future__ import annotations

import pytest
from scipy.stats import poisson

from pft_ray.config import build_job, build_plan, read_job
from pft_ray.config.build import job_digest
from pft_ray.errors import ConfigError
from tests.config.test_owner_jobs import OWNERS
from tests.tiny_job import job_dict

SIZES = {"min_workers": 1, "max_workers": 4}
RATES = {"failures_per_node_hour": 2.0, "step_s": 4.0, "max_reserve": 1.0}
OPEN = {"training__checkpoint_interval": None, "privacy__noise_multiplier": 1.0}
OPEN |= {"privacy__epsilon": None}


def job(**changes):
    return read_job(job_dict(**changes))


def elastic(**changes):
    return {"cluster__elastic": SIZES | changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (elastic(min_workers=5), "min_workers is 5, max_workers 4"),
        (elastic() | {"cluster__workers": 5}, "workers is 5, outside"),
        (elastic(min_workers=2), "workers is 1, outside"),
        (elastic() | OWNERS, "min_workers is 1 for 2 owners"),
        (elastic() | {"training__noise_shares": 3}, "noise_shares is 3 for 4 workers"),
        (
            elastic() | {"privacy__mode": "sequential", "cluster__workers": 2},
            "privacy.mode sequential",
        ),
        (
            elastic(min_workers=2)
            | OWNERS
            | {"cluster__workers": 2, "cluster__tolerate_missing": 1},
            "tolerate_missing",
        ),
        ({"cluster__file": "c.yaml"}, "file is given without cluster.elastic"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        job(**changes)


def test_owners_need_a_worker_each(tmp_path):
    spec = job(**OWNERS, **elastic(min_workers=2), cluster__workers=2)
    assert build_job(spec, tmp_path).plan.num_shares == 4


def test_sizes_change_the_shares_of_a_plan_and_nothing_else():
    fixed, moving = job(), job(**elastic())
    assert job_digest(fixed) == job_digest(moving)
    (plan, epsilon), (wide, same) = build_plan(fixed), build_plan(moving)
    assert same == epsilon
    assert (plan.num_shares, wide.num_shares) == (1, 4)
    told, other = plan.to_dict(), wide.to_dict()
    assert {name for name in told if told[name] != other[name]} == {"num_shares"}
    assert build_plan(job(**elastic(), training__noise_shares=6))[0].num_shares == 6


def test_interval_and_reserve_follow_from_the_rate():
    """The reserve covers q failures, by the tail of a Poisson count of scipy.stats."""
    plan, _ = build_plan(job(**OPEN, **elastic(), cluster__faults=RATES))
    lost = plan.checkpoint_interval + 2
    covered, rest = divmod(plan.fault_reserve, lost)
    assert rest == 0
    step_s = 4.0 + 1.0 / plan.checkpoint_interval

    def risk(q, restart_s=20.0):
        open_s = (16 + q * lost) * step_s + q * restart_s
        return poisson.sf(q, 2.0 * 4 / 3600 * open_s)

    assert covered >= 1
    assert risk(covered) <= 0.01 < risk(covered - 1)


def test_the_rate_counts_for_the_largest_size_and_the_restart_for_time():
    def reserve(**changes):
        rare = RATES | {"failures_per_node_hour": 0.5}
        faults = rare | changes.pop("faults", {})
        given = OPEN | {"training__checkpoint_interval": 4} | changes
        return build_plan(job(**given, cluster__faults=faults))[0].fault_reserve

    assert reserve(**elastic(max_workers=32)) > reserve(**elastic())
    slow = reserve(faults={"restart_s": 600.0}, **elastic())
    assert slow > reserve(**elastic())


def test_what_the_job_gives_wins():
    given = OPEN | {"training__checkpoint_interval": 4, "privacy__fault_reserve": 9}
    plan, _ = build_plan(job(**given, **elastic(), cluster__faults=RATES))
    assert (plan.checkpoint_interval, plan.fault_reserve) == (4, 9)
    given = OPEN | {"training__checkpoint_interval": 8}
    plan, _ = build_plan(job(**given, **elastic(), cluster__faults=RATES))
    assert plan.checkpoint_interval == 8
    assert plan.fault_reserve % (8 + 2) == 0, "chosen for the interval that is given"
    given = OPEN | {"privacy__fault_reserve": 7}
    plan, _ = build_plan(job(**given, **elastic(), cluster__faults=RATES))
    assert plan.fault_reserve == 7
    assert plan.checkpoint_interval + 2 <= 7
