"""``pft plan`` of a job whose size moves and whose reserve follows from a rate."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.refusals import pft
from tests.tiny_job import job_dict


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))

    def run(*arguments, **changes):
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job_dict(**changes)))
        answer = pft("plan", path, *arguments)
        assert answer.code == 0, answer.err
        return answer

    return run


SIZES = {"cluster__elastic": {"min_workers": 1, "max_workers": 3}}
RATES = {"failures_per_node_hour": 2.0, "step_s": 4.0, "max_reserve": 1.0}
OPEN = SIZES | {"cluster__faults": RATES, "training__checkpoint_interval": None}


def test_sizes_and_shares_are_told(plan):
    told = plan("--json", training__noise_shares=4, **SIZES).json
    assert told["elastic"] == {
        "min_workers": 1,
        "max_workers": 3,
        "start_workers": 1,
        "num_shares": 4,
        "shares_at_min": [4, 4],
        "shares_at_max": [1, 2],
    }
    fixed = plan("--json").json
    assert fixed["epsilon"] == told["epsilon"]
    assert "elastic" not in fixed
    words = " ".join(plan(training__noise_shares=4, **SIZES).out.split())
    assert "1 to 3 workers, 4 noise shares: 4 a rank at 1, 1 or 2 a rank at 3" in words
    assert "epsilon and noise are those of any size" in words


def test_what_was_chosen_for_faults_is_told(plan):
    told = plan("--json", **OPEN).json
    chosen = told["chosen_for_faults"]
    assert chosen["fault_reserve"] == told["fault_reserve"] > 0
    assert 0 < chosen["risk"] <= 0.01
    assert chosen["failures_covered"] >= 1
    assert chosen["expected_failures"] > 0
    words = " ".join(plan(**OPEN).out.split())
    assert f"reserve {told['fault_reserve']}; " in words
    assert "chosen for faults" in words


def test_nothing_is_told_as_chosen_when_the_job_gives_both(plan):
    given = OPEN | {"training__checkpoint_interval": 4, "privacy__fault_reserve": 9}
    assert "chosen_for_faults" not in plan("--json", **given).json
