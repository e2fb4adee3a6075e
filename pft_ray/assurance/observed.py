"""Released utility of earlier runs, as an adaptive allocation reads it."""

from __future__ import annotations

import math
from typing import Any

from pft_ray.accounting.allocation import Released
from pft_ray.errors import InputError

_Z = 1.959963984540054  # the normal quantile of 0.975
_SMALLER_IS_BETTER = ("perplexity", "loss")


def released_utility(report: dict[str, Any]) -> Released:
    """Returns the main measure of a run's report, larger is better, with its noise.

    Args:
        report: The contents of report.json: released values only.

    Raises:
        InputError: The report holds no utility.
    """
    utility = report.get("utility") or {}
    value, interval = utility.get("private"), utility.get("interval")
    if not isinstance(value, float | int) or not isinstance(interval, list):
        raise InputError(
            f"The run {report.get('run_id')!r} released no utility.",
            "Name runs of jobs with an evaluation.",
        )
    low, high = (float(end) for end in interval)
    if utility["metric"] in _SMALLER_IS_BETTER:
        value = -float(value)
    error = (high - low) / (2 * _Z)
    return Released(float(value), error if math.isfinite(error) else math.inf)
