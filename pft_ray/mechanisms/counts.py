"""Integer counts under discrete Gaussian noise: how utility leaves a run.

A look at the validation block counts integers of small sensitivity, adds exact
integer noise once, and is stored; accuracy, AUROC and perplexity follow from the
stored value (:mod:`pft_ray.assurance.utility`) and cost nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.accounting.events import check_count, check_positive
from pft_ray.crypto import aes_keystream, derive_key
from pft_ray.errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_SIGMA = 2.0**40
_STREAM_WORDS = 4096


class _SecureIntegers:
    """Uniform integers from the AES-256-CTR streams of keys derived from one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._num_streams = 0
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            key = derive_key(self._key, "discrete-gaussian", self._num_streams)
            self._words = aes_keystream(key, _STREAM_WORDS).tolist()
            self._num_streams += 1
        return self._words.pop()

    def below(self, bound: int) -> int:
        """Returns an exactly uniform integer in [0, bound), by rejection."""
        num_bits = (bound - 1).bit_length()
        num_words = -(-num_bits // 64)
        while True:
            value = 0
            for _ in range(num_words):
                value = value << 64 | self._word()
            value >>= 64 * num_words - num_bits
            if value < bound:
                return value


def discrete_gaussian(key: bytes, sigma: float, size: int) -> NDArray[np.int64]:
    """Returns ``size`` exact draws of the discrete Gaussian of scale ``sigma``.

    P(x) is proportional to exp(-x^2 / (2 sigma^2)) on the integers. Algorithms 1 to
    3 of Canonne, Kamath and Steinke 2020 (arXiv:2004.00010) in integer arithmetic:
    no floating point touches a draw, and ``sigma`` is used as the exact rational
    number that the float is.

    Args:
        key: 32 bytes, used for this draw only.
        sigma: At most 2**40.
        size: Number of draws.

    Raises:
        PlanError: sigma is not positive or too large for 64-bit counts.
    """
    if check_positive(sigma, "sigma") > MAX_SIGMA:
        raise PlanError(f"sigma is {sigma:g}.", f"Give at most {MAX_SIGMA:g}.")
    source = _SecureIntegers(key)
    variance = Fraction(sigma) * Fraction(sigma)
    draws = [_draw(source, variance, int(sigma) + 1) for _ in range(size)]
    return np.array(draws, dtype=np.int64)


def _draw(source: _SecureIntegers, variance: Fraction, scale: int) -> int:
    """One discrete Gaussian by rejection from the discrete Laplace of ``scale``."""
    top, bottom = variance.numerator, variance.denominator
    while True:
        candidate = _discrete_laplace(source, scale)
        # (|candidate| - variance / scale)^2 / (2 variance) as one fraction.
        distance = abs(candidate) * scale * bottom - top
        if _bernoulli_exp(source, distance**2, 2 * top * bottom * scale**2):
            return candidate


def _discrete_laplace(source: _SecureIntegers, scale: int) -> int:
    """P(x) is proportional to exp(-|x| / scale)."""
    while True:
        part = source.below(scale)
        if not _bernoulli_exp_unit(source, part, scale):
            continue
        whole = 0
        while _bernoulli_exp_unit(source, 1, 1):
            whole += 1
        magnitude = part + scale * whole
        negative = source.below(2) == 1
        if negative and magnitude == 0:
            continue
        return -magnitude if negative else magnitude


def _bernoulli_exp(source: _SecureIntegers, top: int, bottom: int) -> bool:
    """Returns True with probability exp(-top / bottom), top >= 0."""
    whole, rest = divmod(top, bottom)
    for _ in range(whole):
        if not _bernoulli_exp_unit(source, 1, 1):
            return False
    return _bernoulli_exp_unit(source, rest, bottom)


def _bernoulli_exp_unit(source: _SecureIntegers, top: int, bottom: int) -> bool:
    """Returns True with probability exp(-top / bottom), 0 <= top <= bottom."""
    k = 1
    while source.below(bottom * k) < top:
        k += 1
    return k % 2 == 1


def noisy_counts(key: bytes, counts: ArrayLike, sigma: float) -> NDArray[np.int64]:
    """Returns integer counts plus discrete Gaussian noise of scale ``sigma``.

    Args:
        key: 32 bytes, used for this release only.
        counts: Exact integer counts, shape (K,).
        sigma: Noise scale.

    Guarantee:
        When one unit changes one count by at most s and no other, the event is
        ``DiscreteGaussian(sigma, s)``; when it changes one count in each of m groups,
        ``Repeat(DiscreteGaussian(sigma, s), m)``.
    """
    exact = np.asarray(counts)
    if exact.ndim != 1 or exact.dtype.kind not in "iu":
        msg = f"counts must be integers of shape (K,), not {exact.dtype} {exact.shape}"
        raise ValueError(msg)
    return exact.astype(np.int64) + discrete_gaussian(key, sigma, exact.size)


@dataclass(frozen=True)
class ClassificationLayout:
    """How a look at a classifier is laid out in one vector of counts.

    ``[correct, wrong, cells...]``: the cells are the rows of a table with one row a
    true class. With two classes the columns are ``num_bins`` equal bins of the score
    P(class 1), and a score of 1/2 or more answers "class 1". With more classes the
    columns are the answers, so that the table is the confusion table.

    Attributes:
        num_classes: C, from the declared label list.
        num_bins: Score bins of a class; even. Not used for more than two classes.
    """

    num_classes: int
    num_bins: int = 20

    def __post_init__(self) -> None:
        if self.num_classes < 2 or self.num_bins < 2 or self.num_bins % 2:
            raise PlanError(
                f"{self.num_classes} classes and {self.num_bins} score bins.",
                "Give two or more classes and an even number of bins.",
            )

    @property
    def num_columns(self) -> int:
        """Columns of the table."""
        return self.num_bins if self.num_classes == 2 else self.num_classes

    @property
    def length(self) -> int:
        """Length of the vector of counts."""
        return 2 + self.num_classes * self.num_columns

    @property
    def correct_cells(self) -> NDArray[np.bool_]:
        """Which cells hold right answers; shape (num_classes, num_columns)."""
        if self.num_classes > 2:
            return np.eye(self.num_classes, dtype=bool)
        says_one = np.arange(self.num_bins) >= self.num_bins // 2
        return np.stack([~says_one, says_one])


def classification_counts(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    num_bins: int = 20,
) -> NDArray[np.int64]:
    """Counts right and wrong answers and fills the table of scores by true class.

    Args:
        probabilities: One row a unit (also when a unit has several records), shape
            (n, C) with the declared number of classes C. A row with a value that is
            not finite is read as all zeros: it answers class 0, in the lowest bin.
        targets: True classes, shape (n,). A unit whose class is not in [0, C) adds
            nothing.
        num_bins: Score bins of a class, even; used for two classes only.

    Returns:
        int64 counts as :class:`ClassificationLayout` lays them out.

    Guarantee:
        A unit adds 1 to one of the two leading counts and 1 to one cell of the table,
        or nothing, whatever the other units are: two groups of sensitivity 1, the
        event ``Repeat(DiscreteGaussian(sigma, 1), 2)`` under :func:`noisy_counts`.
    """
    scores = np.array(probabilities, dtype=np.float64)
    truth = np.asarray(targets)
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        msg = f"scores of shape {scores.shape} and classes of shape {truth.shape}"
        raise ValueError(msg)
    layout = ClassificationLayout(scores.shape[1], num_bins)
    scores[~np.isfinite(scores).all(axis=1)] = 0.0
    if layout.num_classes == 2:
        column = np.floor(np.clip(scores[:, 1], 0.0, 1.0) * layout.num_bins)
        column = np.minimum(column.astype(np.int64), layout.num_bins - 1)
    else:
        column = scores.argmax(axis=1).astype(np.int64)
    known = (truth >= 0) & (truth < layout.num_classes)
    table = np.zeros((layout.num_classes, layout.num_columns), dtype=np.int64)
    np.add.at(table, (truth[known], column[known]), 1)
    correct = int(table[layout.correct_cells].sum())
    head = np.array([correct, int(table.sum()) - correct], dtype=np.int64)
    return np.concatenate([head, table.ravel()])


def clipped_loss_sum(losses: NDArray[np.float64], bound: float, levels: int) -> int:
    """Sums losses clipped to [0, bound], counted from the middle of that range.

    A loss of 0 counts -levels, bound / 2 counts 0 and ``bound`` counts +levels; a
    loss that is not a number counts as ``bound``. Counting from the middle halves
    the noise against counting from 0, and a wrong declared number of units then
    moves the mean loss towards bound / 2 instead of scaling it.

    Args:
        losses: One loss a unit, in nats, shape (n,).
        bound: Largest loss a unit may contribute.
        levels: Integer steps from the middle to either end.

    Guarantee:
        Adding or removing a unit changes the sum by at most ``levels``: the event is
        ``DiscreteGaussian(sigma, levels)`` under :func:`noisy_counts`.
    """
    check_positive(bound, "loss_bound")
    check_count(levels, "loss_levels")
    values = np.nan_to_num(
        np.asarray(losses, dtype=np.float64), nan=bound, posinf=bound, neginf=0.0
    )
    centred = np.clip(values, 0.0, bound) / bound * 2.0 - 1.0
    return int(np.rint(centred * levels).astype(np.int64).sum())
