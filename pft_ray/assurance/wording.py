"""The sentences of a report, and numbers written so that they never understate."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan, UserLevel

INTERVAL_NOTE = (
    "Intervals cover 95 % of the noise added for privacy; not the choice of units, nor "
    "the spread over runs. The trivial guess is the best constant answer."
)
FILTER_NOTE = (
    "The blocks of this run are filters: all that is done to them is counted at one "
    "Rényi order, fixed before. ε of the run is its whole reservation at that order, "
    "whatever it used. Settings of later runs may follow from results of earlier ones: "
    "for all runs together the ε of the block holds."
)
_LARGEST_SHOWN_FACTOR = 1e6


def round_up(value: float, digits: int = 3) -> str:
    """Returns a positive number at ``digits`` significant digits, rounded up.

    A privacy loss that is shown rounded is never shown smaller than it is.
    """
    if not math.isfinite(value):
        return "unbounded"
    if value <= 0:
        return "0"
    exact = Decimal(repr(value))
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    rounded = exact.quantize(step, rounding=ROUND_CEILING)
    if -3 <= rounded.adjusted() < 6:
        return f"{rounded:f}"
    mantissa = rounded.scaleb(-rounded.adjusted()).normalize()
    return f"{mantissa}e{rounded.adjusted()}"


def unit_phrase(unit: str, user_column: str | None) -> str:
    """Returns the unit in words: ``user (by `sender`)`` names the column."""
    if unit == "user" and user_column is not None:
        return f"user (by `{user_column}`)"
    return unit


def guarantee_sentence(
    epsilon: float, delta: float, unit: str, domain: str, *, baseline: bool
) -> str:
    """Returns the guarantee in one sentence.

    Args:
        epsilon: Privacy loss, finite.
        delta: Probability that is left out.
        unit: From :func:`unit_phrase`.
        domain: ``raw`` or ``prepared``.
        baseline: Whether results of a non-private run are shown, which no guarantee
            covers.
    """
    factor = "e^ε"
    if epsilon <= math.log(_LARGEST_SHOWN_FACTOR):
        factor = f"{round_up(math.exp(epsilon))} (e^ε)"
    data = "prepared data" if domain == "prepared" else "data"
    released = "anything this run releases"
    if baseline:
        released = "anything the private run releases"
    return (
        f"Adding or removing any one {unit} of the {data} changes the probability of "
        f"{released} by at most a factor of {factor}, plus δ: "
        f"ε = {round_up(epsilon)}, δ = {round_up(delta)}."
    )


def relation_note(unit: str, domain: str) -> str:
    """Returns what the neighbouring relation is about."""
    if domain == "prepared":
        return (
            f"The guarantee is about the prepared list: removing one raw {unit} may "
            f"change {'two' if unit == 'record' else 'several'} prepared ones."
        )
    return (
        f"The guarantee is about the raw list: each {unit} was prepared by itself, "
        "without regard to others."
    )


def scope_note(*, public: bool, baseline: bool) -> str:
    """Returns what the guarantee's scope means."""
    if not public:
        return "The guarantee covers the data that the model was fine-tuned with."
    note = (
        "The data set is registered as public. Take the settings of this job as "
        "searched on this very data: no epsilon here accounts for that."
    )
    if baseline:
        note += (
            " A non-private baseline ran on it too; its results are shown beside the "
            "private ones and have no guarantee."
        )
    return note


def user_note(user: UserLevel, user_column: str | None) -> str:
    """Returns what a user is and how all its records are hidden together."""
    column = f"column `{user_column}`" if user_column else "the user column"
    most = user.max_records_per_user
    if user.kind == "els":
        how = (
            "Records are drawn and clipped one by one, and the loss counts up to "
            f"{most} of a user together (example-level sampling)."
        )
    else:
        how = (
            f"Users are drawn, and the {user.contribution} of a user's up to {most} "
            "record gradients is clipped once (user-level sampling)."
        )
    return (
        f"A user is a value of {column}, not a person. {how} A look at the validation "
        "block uses one record of each user."
    )


def owners_note(plan: Plan, num_colluding: int) -> str:
    """Returns what the epsilons of owners bound, and against whom."""
    unit, by_sample = plan.unit, plan.owners is None or plan.owners.method == "sample"
    how = "drawn at its owner's rate" if by_sample else "clipped at its norm"
    absent = ""
    if plan.tolerate_missing:
        absent = f" Both hold with {plan.tolerate_missing} worker(s) absent, too."
    return (
        f"Each {unit} is {how} and loses at most the ε of its owner: one {unit}, never "
        "all that an owner holds. The first ε is against whoever sees what is "
        f"released, the second against {num_colluding} other owner(s) who subtract "
        "their own shares of the noise; none means that they share a worker. Who "
        f"reads partial sums on the wire, or other workers' memory, is not "
        f"covered.{absent} "
        "Membership, sizes and ε of owners are public."
    )


def not_covered(unit: str) -> list[str]:
    """Returns what the guarantee says nothing about, one sentence each."""
    lines = [
        "The pre-training data of the public base model.",
        "Text that is given to the model when it is served.",
        "Those who run the cluster: they hold the raw data and are trusted with it.",
        "What the data says of people in general: that can be learned from others.",
        "Faults of machines are assumed not to depend on the data.",
    ]
    if unit == "record":
        lines.insert(
            2,
            "Several records of one person together: k records have up to k times the "
            "ε, and a larger δ.",
        )
    if unit == "user":
        lines.insert(
            2,
            "A person who is several users of the data: k users have up to k times the "
            "ε, and a larger δ.",
        )
    return lines
