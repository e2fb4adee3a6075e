"""``pft plan`` of a job with owners: what one unit of each loses, and to whom."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import PoissonGaussian, Repeat
from tests.e2e.refusals import pft
from tests.tiny_job import job_dict

JOB = Path(__file__).parents[2] / "jobs" / "owners.yaml"
NAMES = ("north", "west", "south")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))

    def run(*arguments):
        answer = pft("plan", JOB, *arguments)
        assert answer.code == 0, answer.err
        return answer

    return run


def rounded_up(value):
    return f"{math.ceil(value * 100) / 100:.2f}"


def test_the_shipped_job_costs_each_owner_what_its_comment_says(plan):
    result = plan("--json").json
    owners = result["owners"]
    assert (owners["method"], owners["colluding"]) == ("sample", 1)
    assert tuple(row["name"] for row in owners["members"]) == NAMES
    told = re.findall(r"#   (\w+) +([\d.]+) +([\d.]+)$", JOB.read_text(), re.M)
    for row, line in zip(owners["members"], told, strict=True):
        assert line == (
            row["name"],
            rounded_up(row["epsilon"]),
            rounded_up(row["epsilon_against_colluders"]),
        )
        assert row["epsilon"] <= row["epsilon_declared"]
        # Of three equal shares of the noise one is known.
        noise = result["noise_multiplier"] * math.sqrt(2 / 3)
        event = Repeat(PoissonGaussian(row["sample_rate"], noise), 70)
        against = row["epsilon_against_colluders"]
        assert against == pytest.approx(epsilon(event, 1e-5), rel=1e-6)
        assert row["clip_norms"] == [1.0, 0.1]
    assert result["epsilon"] == max(row["epsilon"] for row in owners["members"])
    drawn = sum(row["sample_rate"] * row["size"] for row in owners["members"])
    assert result["expected_batch_size"] == pytest.approx(drawn)
    assert drawn == pytest.approx(512)
    assert "2.4464" in JOB.read_text()
    assert result["noise_multiplier"] == 2.4464
    assert result["evaluation"]["epsilon"] == 1, "a validation mail has an owner"


def test_the_table_is_shown_in_words(plan):
    shown = " ".join(plan().out.split())
    assert "owners by sample; epsilon is that of one record of an owner" in shown
    for name, declared in zip(NAMES, (1, 2, 3), strict=True):
        assert re.search(
            rf"{name} epsilon [\d.]+ of {declared}, against 1 other", shown
        )


def test_by_scale_the_clip_norms_differ(plan):
    members = plan("--set", "privacy.owners.method=scale", "--json").json["owners"][
        "members"
    ]
    assert len({row["sample_rate"] for row in members}) == 1
    norms = [row["clip_norms"] for row in members]
    assert norms == sorted(norms)
    for first, second in norms:
        assert second == pytest.approx(first / 10)
    mean = sum(row["size"] * row["clip_norms"][0] for row in members) / 4150
    assert mean == pytest.approx(1.0)


def test_owners_that_share_a_worker_are_told_that_nothing_is_hidden(plan):
    arguments = ("--set", "cluster.workers=1", "--set", "training.noise_shares=3")
    for row in plan(*arguments, "--json").json["owners"]["members"]:
        assert row["epsilon_against_colluders"] is None
    assert plan(*arguments).out.count("nothing is hidden") == 3


def test_without_owners_nothing_is_said_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_dict()))
    assert "owners" not in pft("plan", path, "--json").json
    assert "owner" not in pft("plan", path).out
