"""What released counts say about a model: pure post-processing, no data, no budget.

Every number here is a function of the stored noisy counts and of the public plan.
Intervals hold the noise that privacy added and nothing else: not the chance of which
units were in the validation block, not the spread over runs.

Notation: the table of a look has one cell a (true class, column). Its noise is
independent with variance at most sigma^2 in each cell, and so is the noise of the two
leading counts (right answers, wrong answers). Both describe the same units, so the
table is first moved onto the leading counts by least squares; any smooth function of
the table then has the variance of :meth:`_Table.deviation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pft_ray.errors import InputError
from pft_ray.mechanisms import ClassificationLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pft_ray.accounting.plan import EvaluationPlan

_Z = 1.959963984540054  # the normal quantile of 0.975
# A count is told from its noise when it is this many deviations away from zero.
_SEEN = 3.0


@dataclass(frozen=True)
class Utility:
    """One released measure of a model.

    Attributes:
        metric: Its name.
        private: The estimate for the private model.
        interval: What the added noise leaves open, at 95 %.
        trivial: The same metric for the best constant answer, if that can be said.
        non_private: For the same recipe without privacy; public data only.
    """

    metric: str
    private: float
    interval: tuple[float, float]
    trivial: float | None = None
    non_private: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the measure as JSON for a report; absent values are left out."""
        data: dict[str, Any] = {
            "metric": self.metric,
            "private": self.private,
            "interval": list(self.interval),
        }
        for name in ("trivial", "non_private"):
            value = getattr(self, name)
            if value is not None:
                data[name] = value
        return data


def evaluation_utility(
    counts: Sequence[int],
    evaluation: EvaluationPlan,
    num_classes: int = 2,
    baseline: Sequence[int] | None = None,
) -> dict[str, Utility]:
    """Returns the measures of one released look, the main one first.

    Args:
        counts: The stored noisy counts of the look.
        evaluation: The plan of the looks.
        num_classes: Length of the declared label list; not used for language models.
        baseline: Exact counts of a run without privacy, on public data only.

    Returns:
        By metric: ``accuracy`` and then ``auroc`` (two classes) or
        ``balanced_accuracy`` (more); ``perplexity`` and ``loss`` for language models.

    Raises:
        InputError: The counts do not have the length that the plan says.
    """
    if baseline is not None:
        plain = evaluation_utility(baseline, evaluation, num_classes)
        return {
            name: replace(measure, non_private=plain[name].private)
            for name, measure in evaluation_utility(
                counts, evaluation, num_classes
            ).items()
        }
    if evaluation.kind == "causal_lm":
        return _language_model(counts, evaluation)
    layout = ClassificationLayout(num_classes, evaluation.num_bins)
    table = _Table.read(counts, layout, evaluation.sigma)
    second = auroc(table) if num_classes == 2 else balanced_accuracy(table)
    return {"accuracy": accuracy(table), second.metric: second}


@dataclass(frozen=True)
class _Table:
    """A released table, moved onto the released numbers of right and wrong answers.

    Attributes:
        cells: Estimated counts, shape (C, columns); may be negative.
        correct: Mask of the cells with right answers.
        sigma: Noise scale of every released count.
    """

    cells: NDArray[np.float64]
    correct: NDArray[np.bool_]
    sigma: float

    @classmethod
    def read(
        cls, counts: Sequence[int], layout: ClassificationLayout, sigma: float
    ) -> _Table:
        values = np.asarray(counts, dtype=np.float64)
        if values.shape != (layout.length,):
            raise InputError(
                f"A look with {values.size} counts; the plan says {layout.length}.",
                "Read it with the plan and labels of its own run.",
            )
        cells = values[2:].reshape(layout.num_classes, layout.num_columns)
        correct = layout.correct_cells
        for mask, total in ((correct, values[0]), (~correct, values[1])):
            cells[mask] -= (cells[mask].sum() - total) / (mask.sum() + 1)
        return cls(cells, correct, sigma)

    def deviation(self, gradient: NDArray[np.float64]) -> float:
        """Returns the standard deviation of a function of the cells.

        The covariance of m cells that were moved onto their total is
        sigma^2 (I - 1 1^T / (m + 1)).
        """
        variance = 0.0
        for mask in (self.correct, ~self.correct):
            part = gradient[mask]
            variance += float((part**2).sum() - part.sum() ** 2 / (part.size + 1))
        return self.sigma * math.sqrt(max(variance, 0.0))

    def share(self, part: NDArray[np.float64]) -> tuple[float, float]:
        """Returns the share of units in the cells of a 0/1 mask, and its deviation."""
        total = float(self.cells.sum())
        if not self.seen(np.ones_like(self.cells)):
            return 0.5, math.inf
        value = float(self.cells[part > 0].sum()) / total
        return value, self.deviation((part - value) / total)

    def seen(self, part: NDArray[np.float64]) -> bool:
        """Says whether the number of units in the cells of a mask exceeds its noise."""
        return float(self.cells[part > 0].sum()) > _SEEN * self.deviation(part)

    def of_class(self, index: int) -> NDArray[np.float64]:
        """Returns the 0/1 mask of the cells of one true class."""
        mask = np.zeros_like(self.cells)
        mask[index] = 1.0
        return mask


def _rate(
    metric: str, value: float, deviation: float, trivial: float | None = None
) -> Utility:
    """A measure in [0, 1], with its interval cut to that range."""
    low, high = value - _Z * deviation, value + _Z * deviation
    inside = (0.0, 1.0)
    if math.isfinite(deviation):  # both ends: a noisy value can lie outside [0, 1]
        inside = (min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0))
    return Utility(metric, min(max(value, 0.0), 1.0), inside, trivial)


def accuracy(table: _Table) -> Utility:
    """Right answers over right and wrong ones, both released, beside the majority.

    The denominator is the noisy number of units, not the declared one: a declared
    number that is off by 5 % would move the accuracy by 5 %, and the noise of the
    number is small. ``trivial`` is the largest noisy class share; picking the largest
    biases it upwards, by less than its noise.
    """
    value, deviation = table.share(table.correct.astype(np.float64))
    shares = [table.share(table.of_class(c))[0] for c in range(len(table.cells))]
    trivial = min(max(shares), 1.0) if math.isfinite(deviation) else None
    return _rate("accuracy", value, deviation, trivial)


def balanced_accuracy(table: _Table) -> Utility:
    """The mean over classes of the share of right answers within the class."""
    num_classes = len(table.cells)
    gradient = np.zeros_like(table.cells)
    recalls = []
    for index in range(num_classes):
        if not table.seen(table.of_class(index)):
            return _rate("balanced_accuracy", 1 / num_classes, math.inf)
        total = float(table.cells[index].sum())
        recall = float(table.cells[index, index]) / total
        gradient[index] = (table.correct[index] - recall) / total / num_classes
        recalls.append(recall)
    value = float(np.mean(recalls))
    return _rate("balanced_accuracy", value, table.deviation(gradient), 1 / num_classes)


def auroc(table: _Table) -> Utility:
    """The area under the ROC curve of the binned scores; ties in a bin count half.

    The bins make it a little smaller than the area of the unbinned scores. The noise
    is linear in the cells and not clamped, so the estimate has no bias from it.
    """
    if not all(table.seen(table.of_class(index)) for index in (0, 1)):
        return _rate("auroc", 0.5, math.inf, 0.5)
    negative, positive = table.cells
    num_negative, num_positive = float(negative.sum()), float(positive.sum())
    below = (np.cumsum(negative) - 0.5 * negative) / num_negative
    above = (num_positive - np.cumsum(positive) + 0.5 * positive) / num_positive
    value = float((positive * below).sum()) / num_positive
    gradient = np.stack(
        [(above - value) / num_negative, (below - value) / num_positive]
    )
    return _rate("auroc", value, table.deviation(gradient), 0.5)


def _language_model(
    counts: Sequence[int], evaluation: EvaluationPlan
) -> dict[str, Utility]:
    """Mean loss over the declared number of units, and its exponential.

    The clipped losses are counted from the middle of their range, so a declared number
    that is wrong by a share s moves the mean by s times its distance from the middle.
    """
    if len(counts) != 1:
        raise InputError(
            f"A look with {len(counts)} counts; a sum of losses is one.",
            "Read it with the plan of its own run.",
        )
    middle = evaluation.loss_bound / 2
    scale = middle / evaluation.size

    def clip(value: float) -> float:
        return min(max(value, 0.0), evaluation.loss_bound)

    value = middle + scale * counts[0] / evaluation.loss_levels
    reach = _Z * scale * evaluation.sigma
    loss = clip(value)
    interval = (clip(value - reach), clip(value + reach))
    exponential = (math.exp(interval[0]), math.exp(interval[1]))
    return {
        "perplexity": Utility("perplexity", math.exp(loss), exponential),
        "loss": Utility("loss", loss, interval),
    }
