"""A report on a run whose clip norm moved: its rule, and where it ended."""

from __future__ import annotations

import json

import pytest

from pft_ray.accounting.plan import Phase
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.assurance.report import build_report
from pft_ray.assurance.report_html import render_html
from pft_ray.errors import InputError
from tests.assurance.report_cases import make_facts, make_plan

RULE = QuantileClipping(0.7, 12.0, 1e-3, 10.0)
PHASES = (
    Phase("head", 40, "head", 1.0),
    Phase("lora", 20, "adapter+head", 0.1, "adaptive", RULE),
)


def facts(**changes):
    fields = {"plan": make_plan(phases=PHASES), "last_clip_norms": (1.0, 0.0371)}
    return make_facts(**(fields | changes))


def test_the_rule_and_the_last_c_are_in_the_report():
    report = build_report(facts())
    fixed = build_report(make_facts())
    assert report.keys() - fixed.keys() == {"last_clip_norm"}
    assert report["clip_norm"] == [1.0, 0.1]
    assert report["last_clip_norm"] == [1.0, 0.0371]
    assert report["phases"][0] == fixed["phases"][0]
    assert report["phases"][1]["quantile"]["count_noise_multiplier"] == 12.0
    assert report["epsilon"] == fixed["epsilon"], "the count shares the event"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_page_shows_both():
    page = render_html(build_report(facts()), facts())
    assert "0.1 at first, 0.0371 at last" in page
    assert "adaptive, 0.7 quantile" in page


@pytest.mark.parametrize("last", [(), (1.0,), (1.0, 0.1, 0.1)])
def test_another_number_of_clip_norms_is_refused(last):
    with pytest.raises(InputError, match="last clip norms for 2 phases"):
        build_report(facts(last_clip_norms=last))


def test_a_plan_that_moves_nothing_has_no_last_clip_norm():
    assert "last_clip_norm" not in build_report(make_facts(last_clip_norms=(1.0, 0.1)))
