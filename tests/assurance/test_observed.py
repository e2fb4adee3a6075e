"""What an allocation reads of a report."""

from __future__ import annotations

import math

import pytest

from pft_ray.assurance.observed import released_utility
from pft_ray.errors import InputError


def report(metric="accuracy", private=0.9, interval=(0.88, 0.92)):
    utility = {"metric": metric, "private": private, "interval": list(interval)}
    return {"run_id": "run", "utility": utility}


def test_an_interval_becomes_one_standard_deviation():
    found = released_utility(report())
    assert found.value == 0.9
    assert found.error == pytest.approx(0.02 / 1.96, rel=1e-3)


def test_a_smaller_perplexity_is_a_larger_utility():
    before = released_utility(report("perplexity", 30.0, (29.0, 31.0)))
    after = released_utility(report("perplexity", 20.0, (19.0, 21.0)))
    assert after.value > before.value


def test_noise_without_bound_is_an_infinite_error():
    found = released_utility(report(interval=(-math.inf, math.inf)))
    assert found.error == math.inf


@pytest.mark.parametrize("utility", [None, {}, {"metric": "accuracy", "private": 1.0}])
def test_a_run_that_released_nothing_is_refused(utility):
    with pytest.raises(InputError, match="released no utility"):
        released_utility({"run_id": "run", "utility": utility})
