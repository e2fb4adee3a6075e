"""``pft plan`` of a job whose unit is the user: which way, why, and both prices."""

from __future__ import annotations

import json

import pytest
import yaml

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import PoissonGaussian, PoissonMixture, Repeat
from pft_ray.config import build as build_module
from pft_ray.errors import PlanError
from tests.e2e.refusals import pft
from tests.tiny_job import job_dict

STEPS = 16 + 2


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Prices a job of 300 users through the command line."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))

    def run(level, *, cap=3, records=400, as_json=True, **changes):
        users = {
            "data__user": "sender",
            "privacy__unit": "user",
            "privacy__user_level": level,
            "privacy__max_records_per_user": cap,
            "privacy__num_train_records": records,
            "privacy__fault_reserve": 2,
            "training__max_micro_batch": 1024,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job_dict(**(users | changes))))
        return pft("plan", path, *(["--json"] if as_json else []))

    return run


def strict(answer):
    """The answer as JSON, in which infinity and NaN have no place."""
    assert answer.code == 0, answer.out + answer.err

    def refuse(word):
        raise AssertionError(word)

    return json.loads(answer.out, parse_constant=refuse)


@pytest.mark.parametrize("level", ["uls", "els", "auto"])
def test_the_plan_says_which_way_and_why_with_both_prices(plan, level):
    result = strict(plan(level))
    chosen = "uls" if level == "auto" else level
    assert result["unit"] == "user"
    assert result["user"]["kind"] == chosen
    said = result["user_level"]
    assert said["column"] == "sender"
    users, records = said["compared"]
    assert (users["user_level"], records["user_level"]) == ("uls", "els")
    assert users["expected_contributions"] == pytest.approx(0.2 * 300)
    assert records["expected_contributions"] == pytest.approx(0.2 * 400)
    for price, step in (
        (users, PoissonGaussian(0.2, users["noise_multiplier"])),
        (records, PoissonMixture(0.2, records["noise_multiplier"], 3)),
    ):
        assert 7.98 < epsilon(Repeat(step, STEPS), 1e-5) <= 8
        ratio = price["noise_multiplier"] / price["expected_contributions"]
        assert price["noise_to_signal"] == pytest.approx(ratio)
    own = users if chosen == "uls" else records
    assert result["noise_multiplier"] == own["noise_multiplier"]
    assert users["noise_to_signal"] < records["noise_to_signal"]
    why = {"auto": "it has less noise", "uls": "the job asks", "els": "the job asks"}
    assert said["reason"].startswith(f"{chosen}, because {why[level]}")
    for price in (users, records):
        assert f"{price['user_level']} {price['noise_to_signal']:.4g}" in said["reason"]
    assert ("uls would have less noise" in said["reason"]) == (level == "els")


def test_equal_prices_keep_the_users(plan):
    """Every user has one record: drawing records is the same and counts as many."""
    result = strict(plan("auto", cap=1, records=300))
    assert result["user"]["kind"] == "uls"
    users, records = result["user_level"]["compared"]
    assert users["noise_to_signal"] == pytest.approx(records["noise_to_signal"])


@pytest.mark.parametrize("cap", [200, 600])
def test_a_large_cap_makes_records_dear_and_users_are_taken(plan, cap):
    result = strict(plan("auto", cap=cap, records=3000))
    assert result["user"]["kind"] == "uls"
    users, records = result["user_level"]["compared"]
    assert records["noise_to_signal"] > 10 * users["noise_to_signal"]


def test_what_has_no_price_is_said_in_words(plan, monkeypatch):
    calibrate = build_module.calibrate_noise_multiplier

    def unreachable(**options):
        user = options["user"]
        if user is not None and user.kind == "els":
            raise PlanError("No noise below 1e+06.", "Raise epsilon.")
        return calibrate(**options)

    monkeypatch.setattr(build_module, "calibrate_noise_multiplier", unreachable)
    monkeypatch.setattr(
        "pft_ray.accounting.user_levels.calibrate_noise_multiplier", unreachable
    )
    result = strict(plan("auto", cap=120))
    assert result["user"]["kind"] == "uls"
    assert result["user_level"]["compared"][1] == {
        "user_level": "els",
        "noise_multiplier": None,
        "expected_contributions": 80.0,
        "noise_to_signal": None,
    }
    assert "els out of reach" in result["user_level"]["reason"]
    assert "up to 120 records" in result["user_level"]["reason"]
    shown = plan("auto", cap=120, as_json=False)
    assert "out of reach" in " ".join(shown.out.split())
    assert "inf" not in shown.out

    refused = plan("els", cap=120)
    assert refused.code == 2
    error = refused.json["error"]
    assert error["code"] == "bad-plan"
    assert "max_records_per_user 120" in error["message"]
    assert "user_level: uls" in error["fix"]


def test_noise_that_is_too_small_for_the_cap_is_refused(plan):
    changes = {"privacy__epsilon": None, "privacy__noise_multiplier": 1.0}
    answer = plan("els", cap=200, records=3000, **changes)
    assert answer.code == 2
    error = answer.json["error"]
    assert "noise_multiplier 1 leaves no finite epsilon" in error["message"]
    assert "max_records_per_user 200" in error["message"]
    assert "user_level: uls" in error["fix"]
    assert "Warning" not in answer.err
