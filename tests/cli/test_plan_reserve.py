"""The price of the fault reserve, as the calculator prints it."""

from __future__ import annotations

import pytest

from tests.e2e.refusals import pft

CASE = ["--size", 60000, "--batch-size", 256, "--steps", 2344]


@pytest.mark.parametrize(
    ("reserve", "low", "high"), [(117, 0.0115, 0.0135), (234, 0.0235, 0.0265)]
)
def test_five_per_cent_more_steps_cost_little_noise(reserve, low, high):
    """By a coarser grid of the PLD: 1.29 and 2.5 per cent; by this one 1.24."""
    answer = pft(
        *("plan", *CASE, "--epsilon", 1.0999, "--fault-reserve", reserve, "--json")
    )
    price = answer.json["reserve_price"]
    assert low < price["relative"] < high
    assert price["without_reserve"] == pytest.approx(1.0, abs=1e-3)
    assert answer.json["num_steps_max"] == 2344 + reserve


def test_no_reserve_has_no_price():
    answer = pft("plan", *CASE, "--noise-multiplier", 1, "--json")
    assert "reserve_price" not in answer.json
    assert answer.json["epsilon"] == pytest.approx(1.0999, abs=1e-3)
