"""Jobs on filter blocks: their keys, and how they are priced at one order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from pft_ray.accounting.events import Repeat
from pft_ray.accounting.filter_calibration import (
    epsilon_at_order,
    order_for_target,
    scale_at_order,
)
from pft_ray.accounting.filters import best_order
from pft_ray.accounting.plan import Phase
from pft_ray.config.base import Section, Text
from pft_ray.errors import ConfigError, InputError, PlanError
from pft_ray.ledger.shares import RhoShare, check_purpose

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.accounting.events import Event
    from pft_ray.accounting.plan import EvaluationPlan, Plan
    from pft_ray.config.sections import JobSpec

Order = Annotated[int, Field(ge=2, le=1024)]


class FilterSection(Section):
    """How a job on filter blocks is priced and what its runs are for."""

    order: Order | None = Field(
        None, description="Renyi order of the training block; default: best for a run."
    )
    purpose: Text = Field(
        "training", description="Purpose of the training block that pays for steps."
    )
    evaluation_order: Order | None = Field(
        None, description="The same of the validation block."
    )
    evaluation_purpose: Text = Field(
        "evaluation", description="Purpose that pays for looks, below evaluation."
    )

    @model_validator(mode="after")
    def _paths(self) -> FilterSection:
        for key, is_look in (("purpose", False), ("evaluation_purpose", True)):
            path = getattr(self, key)
            try:
                check_purpose(path)
            except InputError as error:
                raise ConfigError(
                    f"privacy.filter.{key}: {error.message}", error.fix
                ) from None
            if (path.split("/")[0] == "evaluation") != is_look:
                raise ConfigError(
                    f"privacy.filter.{key} is {path!r}.",
                    "Looks are paid below evaluation, steps below another name.",
                )
        return self


def check_filters(job: JobSpec) -> None:
    """Refuses what a job cannot say together with its accounting.

    Raises:
        ConfigError: Names the key and what to change.
    """
    privacy = job.privacy
    if privacy.accounting == "plan":
        if privacy.filter is not None:
            raise ConfigError(
                "privacy.filter is given, but privacy.accounting is plan.",
                "Set accounting: filter, or remove the key.",
            )
        return
    if privacy.owners is not None:
        raise ConfigError(
            "privacy.mode is owners, and privacy.accounting is filter.",
            "Owners have budgets of their own: set accounting: plan.",
        )
    if job.evaluation is not None and job.validation_block == job.training_block:
        raise ConfigError(
            f"privacy.block and evaluation.block are both {job.training_block!r}.",
            "Training and validation units lie in blocks of their own: name two.",
        )
    if privacy.user_level == "auto":
        raise ConfigError(
            "privacy.user_level is auto, and privacy.accounting is filter: the two "
            "ways are compared by PLD.",
            "Say uls or els, or set accounting: plan.",
        )


def _section(job: JobSpec) -> FilterSection:
    return job.privacy.filter or FilterSection()


def training_events(
    plan: Plan, num_steps: int | None = None
) -> Callable[[float], Event]:
    """Returns the event of T_max steps, or of ``num_steps``, by noise multiplier."""
    one = Phase("all", plan.num_steps, "all", 1.0)
    bare = replace(plan, phases=(one,), evaluation=None)
    count = num_steps or plan.num_steps_max
    return lambda sigma: Repeat(replace(bare, noise_multiplier=sigma).step_event, count)


def training_order(job: JobSpec, plan: Plan) -> int:
    """Returns the order at which training is priced; a function of the job alone."""
    named = _section(job).order
    if named is not None:
        return named
    make_event = training_events(plan)
    sigma, target = job.privacy.noise_multiplier, job.privacy.epsilon
    if sigma is not None:
        return best_order(make_event(sigma), plan.delta)
    return order_for_target(make_event, target or 0.0, plan.delta)


def training_sigma(job: JobSpec, plan: Plan) -> float:
    """Returns the noise multiplier: the job's, or the least within its epsilon.

    Raises:
        PlanError: No noise reaches the target at the order.
    """
    if job.privacy.noise_multiplier is not None:
        return job.privacy.noise_multiplier
    return scale_at_order(
        training_events(plan),
        job.privacy.epsilon or 0.0,
        plan.delta,
        training_order(job, plan),
    )


def look_order(job: JobSpec, looks: EvaluationPlan) -> int:
    """Returns the order at which looks are priced."""
    named = _section(job).evaluation_order
    if named is not None:
        return named
    return order_for_target(
        lambda sigma: replace(looks, sigma=sigma).event, looks.epsilon, looks.delta
    )


def with_sigma_at_order(job: JobSpec, looks: EvaluationPlan) -> EvaluationPlan:
    """Returns the looks with the least noise within their epsilon at their order."""
    sigma = scale_at_order(
        lambda value: replace(looks, sigma=value).event,
        looks.epsilon,
        looks.delta,
        look_order(job, looks),
    )
    return replace(looks, sigma=sigma)


def training_epsilon(job: JobSpec, plan: Plan) -> float:
    """Returns what training costs at its order when it is reserved whole."""
    try:
        return epsilon_at_order(plan.event, plan.delta, training_order(job, plan))
    except PlanError:
        return float("inf")


def orders_of(job: JobSpec, plan: Plan) -> dict[str, int]:
    """Returns the order of each block that a filter job reserves on."""
    orders = {job.training_block: training_order(job, plan)}
    if plan.evaluation is not None:
        orders[job.validation_block] = look_order(job, plan.evaluation)
    return orders


def shares_of(job: JobSpec, plan: Plan) -> tuple[RhoShare, ...]:
    """Returns the shares that a filter run reserves, training first."""
    section, orders = _section(job), orders_of(job, plan)
    train, looks = job.training_block, job.validation_block
    shares = [RhoShare.priced(train, section.purpose, plan.event, orders[train])]
    if plan.evaluation is not None:
        event = plan.evaluation.event
        shares.append(
            RhoShare.priced(looks, section.evaluation_purpose, event, orders[looks])
        )
    return tuple(shares)
