"""What was done to the data, as frozen values: the ledger stores these.

An event says which mechanism ran, never what epsilon it cost; epsilon is derived
by :mod:`pft_ray.accounting.accountants`, so a better accountant can re-read old
runs. The codec is our own tagged JSON (schema 1): nothing is imported by a name
found in stored bytes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, get_args

from pft_ray.errors import PlanError

_TINY = 2.2250738585072014e-308  # smallest normal double
MOST_RECORDS_PER_USER = 1000


def _as_float(value: Any) -> float:
    """Returns the number as a float, or NaN when it is none (a bool, a string)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_positive(value: float, name: str) -> float:
    """Returns ``value`` as a float; refuses NaN, infinite, subnormal or <= 0.

    Only numbers pass: a bool or a numeral in a string is refused.
    """
    number = _as_float(value)
    if not math.isfinite(number) or number < _TINY:
        raise PlanError(
            f"{name} is {value!r}.", f"Give a finite positive number for {name}."
        )
    return number


def check_rate(value: float, name: str = "sample_rate") -> float:
    """Returns ``value`` as a float in (0, 1]."""
    number = check_positive(value, name)
    if number > 1:
        raise PlanError(f"{name} is {value!r}.", f"Give {name} between 0 and 1.")
    return number


def check_count(value: int, name: str) -> int:
    """Returns ``value`` as an int >= 1; refuses bools, strings and fractions."""
    number = _as_float(value)
    if not math.isfinite(number) or number < 1 or int(value) != value:
        raise PlanError(f"{name} is {value!r}.", f"Give {name} as an integer >= 1.")
    return int(value)


def check_count_or_zero(value: int, name: str) -> int:
    """Returns ``value`` as an int >= 0."""
    return 0 if value == 0 else check_count(value, name)


def check_word(value: str, words: Any, name: str) -> None:
    """Refuses a value that is not one of the words of a ``Literal``."""
    if value not in get_args(words):
        known = ", ".join(get_args(words))
        raise PlanError(f"{name} is {value!r}.", f"Give one of {known}.")


def check_below_one_nth(delta: float, size: int) -> None:
    """Refuses a delta that would allow to give away one unit whole."""
    if delta * size >= 1:
        raise PlanError(
            f"delta {delta:g} is not below 1/n for the declared n {size}.",
            f"Give delta below {1 / size:.3g}; 1e-5 or n**-1.1 are usual.",
        )


def store(instance: object, **values: float) -> None:
    """Writes checked numbers back into a frozen dataclass.

    Equal events then have one JSON form: an int 1 and a float 1.0 would not.
    """
    for name, value in values.items():
        object.__setattr__(instance, name, value)


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of standard deviation noise_multiplier times sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        sigma = check_positive(self.noise_multiplier, "noise_multiplier")
        store(self, noise_multiplier=sigma)


@dataclass(frozen=True)
class PoissonGaussian:
    """A Gaussian on a Poisson sample: each unit is in with probability sample_rate.

    sample_rate 1 is the unsampled Gaussian.
    """

    sample_rate: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        sigma = check_positive(self.noise_multiplier, "noise_multiplier")
        store(self, sample_rate=check_rate(self.sample_rate), noise_multiplier=sigma)


@dataclass(frozen=True)
class PoissonMixture:
    """A Gaussian on a Poisson sample of records, seen from a user's side.

    A user has at most ``max_records_per_user`` records; each is in with probability
    sample_rate by itself and changes the sum by at most the clip norm. The number that
    is in is binomial, so the loss is that of a mixture of Gaussians (arXiv:2407.07737).
    """

    sample_rate: float
    noise_multiplier: float
    max_records_per_user: int

    def __post_init__(self) -> None:
        sigma = check_positive(self.noise_multiplier, "noise_multiplier")
        records = check_count(self.max_records_per_user, "max_records_per_user")
        if records > MOST_RECORDS_PER_USER:
            raise PlanError(
                f"max_records_per_user is {records}.",
                f"Give at most {MOST_RECORDS_PER_USER}.",
            )
        store(
            self,
            sample_rate=check_rate(self.sample_rate),
            noise_multiplier=sigma,
            max_records_per_user=records,
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """Probabilities that 0, 1, ... records of the user are in; they sum to 1."""
        count, q = self.max_records_per_user, self.sample_rate
        terms = [
            math.comb(count, j) * q**j * (1 - q) ** (count - j)
            for j in range(count + 1)
        ]
        total = math.fsum(terms)
        return tuple(term / total for term in terms)


@dataclass(frozen=True)
class DiscreteGaussian:
    """Integer Gaussian noise of scale sigma on a count of integer sensitivity."""

    sigma: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        sigma = check_positive(self.sigma, "sigma")
        sensitivity = check_count(self.sensitivity, "sensitivity")
        store(self, sigma=sigma, sensitivity=sensitivity)


@dataclass(frozen=True)
class NonPrivate:
    """A release without any guarantee: epsilon is infinite."""


@dataclass(frozen=True)
class Repeat:
    """``count`` independent runs of ``event``, adaptively chosen."""

    event: Event
    count: int

    def __post_init__(self) -> None:
        store(self, count=check_count(self.count, "count"))


@dataclass(frozen=True)
class Composed:
    """Several events on the same data, one after the other."""

    events: tuple[Event, ...]


Leaf = Gaussian | PoissonGaussian | PoissonMixture | DiscreteGaussian | NonPrivate
Event = Leaf | Repeat | Composed
Leaves = tuple[tuple[Leaf, int], ...]


def count_leaves(event: Event) -> Leaves:
    """Returns the plain events in ``event``, each once, with how often it happens.

    The order of events is lost, which changes no composition of events with fixed
    parameters. Sampling at rate 1 becomes the unsampled Gaussian; all records of a
    user together then divide the noise. A mixture of one record is that record's event.
    """
    counts: dict[Leaf, int] = {}
    todo: list[tuple[Event, int]] = [(event, 1)]
    while todo:
        item, times = todo.pop()
        match item:
            case Repeat(event=inner, count=count):
                todo.append((inner, times * count))
            case Composed(events=events):
                todo.extend((inner, times) for inner in reversed(events))
            case PoissonGaussian(sample_rate=1.0, noise_multiplier=sigma):
                leaf = Gaussian(sigma)
                counts[leaf] = counts.get(leaf, 0) + times
            case PoissonMixture(
                sample_rate=q, noise_multiplier=sigma, max_records_per_user=records
            ) if q == 1 or records == 1:
                todo.append((PoissonGaussian(q, sigma / records), times))
            case _:
                counts[item] = counts.get(item, 0) + times
    return tuple(counts.items())


_LEAVES: dict[str, type[Leaf]] = {
    "gaussian": Gaussian,
    "poisson_gaussian": PoissonGaussian,
    "poisson_mixture": PoissonMixture,
    "discrete_gaussian": DiscreteGaussian,
    "non_private": NonPrivate,
}
_TAGS = {kind: tag for tag, kind in _LEAVES.items()}


def event_to_dict(event: Event) -> dict[str, Any]:
    """Returns the event as tagged JSON (codec version 1)."""
    match event:
        case Repeat(event=inner, count=count):
            return {"type": "repeat", "event": event_to_dict(inner), "count": count}
        case Composed(events=events):
            return {"type": "composed", "events": [event_to_dict(e) for e in events]}
        case _:
            return {"type": _TAGS[type(event)], **asdict(event)}


def event_from_dict(data: Any) -> Event:
    """Reads an event written by :func:`event_to_dict`.

    Raises:
        PlanError: The tag is unknown or a field is missing, extra or out of range.
    """
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise PlanError("An event without a type tag.", "Verify the ledger.")
    fields = {key: value for key, value in data.items() if key != "type"}
    tag = data["type"]
    try:
        if tag in _LEAVES:
            return _LEAVES[tag](**fields)
        if tag == "repeat":
            inner = event_from_dict(fields.pop("event", None))
            return Repeat(event=inner, **fields)
        if tag == "composed":
            events = fields.pop("events", None)
            if fields or not isinstance(events, list):
                raise TypeError
            return Composed(tuple(event_from_dict(e) for e in events))
    except TypeError as error:
        raise PlanError(
            f"An event of type {tag!r} has wrong fields.",
            "Verify the ledger with `pft budget verify`.",
        ) from error
    raise PlanError(
        f"Unknown event type {tag!r}.",
        "A newer pft_ray wrote it: upgrade, nothing runs on an unknown event.",
    )
