"""A look at the validation block: counts by rank 0, noised before they leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pft_ray.mechanisms.counts import (
    classification_counts,
    clipped_loss_sum,
    noisy_counts,
)

if TYPE_CHECKING:
    from pft_ray.accounting.plan import EvaluationPlan
    from pft_ray.data.tokens import TokenTable
    from pft_ray.training.local import LocalWork


def exact_counts(plan: EvaluationPlan, work: LocalWork, table: TokenTable) -> list[int]:
    """Returns the counts of a look without noise; they may not leave the process.

    Public registrations are the only exception: there they are the baseline's.
    """
    if plan.kind == "classification":
        assert table.targets is not None
        probabilities = work.evaluate_probabilities(table).astype(np.float64)
        counts = classification_counts(probabilities, table.targets, plan.num_bins)
        return [int(count) for count in counts]
    losses = work.evaluate_losses(table).astype(np.float64)
    return [clipped_loss_sum(losses, plan.loss_bound, plan.loss_levels)]


def look(
    plan: EvaluationPlan, work: LocalWork, table: TokenTable, key: bytes
) -> list[int]:
    """Returns the released counts of one look, noised under its fresh key.

    Guarantee:
        The result is one release of ``plan.look_event``: every count carries
        discrete Gaussian noise of scale sigma (times the loss grid for losses), and
        one unit changes each of the two counts it touches by at most 1.
    """
    counts = exact_counts(plan, work, table)
    scale = 1 if plan.kind == "classification" else plan.loss_levels
    return [int(count) for count in noisy_counts(key, counts, plan.sigma * scale)]
