"""From a checked job to its plan: the only place where a plan is made for a job."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pft_ray.accounting.accountants import epsilon as epsilon_of
from pft_ray.accounting.calibration import (
    calibrate_discrete_sigma,
    calibrate_noise_multiplier,
)
from pft_ray.accounting.owner_calibration import OwnerTarget, individualise
from pft_ray.accounting.plan import (
    EvaluationPlan,
    Phase,
    Plan,
    UserLevel,
    canonical_json,
)
from pft_ray.accounting.user_levels import cheaper, price_user_levels
from pft_ray.config.fault_plan import grant_size, interval_and_reserve
from pft_ray.config.filters import (
    orders_of,
    shares_of,
    training_epsilon,
    training_sigma,
    with_sigma_at_order,
)
from pft_ray.config.owners import training_blocks
from pft_ray.config.quantile import QuantileSection
from pft_ray.config.sections import JobSpec
from pft_ray.config.users import USER_KEYS
from pft_ray.errors import PlanError
from pft_ray.ledger.budget import Envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.accounting.owners import Owners
    from pft_ray.config.sections import PhaseSection
    from pft_ray.ledger.shares import RhoShare

_PUBLIC_SECTIONS = {"data", "model", "privacy", "training", "evaluation", "version"}


@dataclass(frozen=True)
class BuiltJob:
    """A job with its plan.

    Attributes:
        job: The checked job file.
        plan: The frozen plan.
        base_dir: Folder that relative paths of the job start from.
        envelopes: What is reserved, training first, one envelope an owner; none on
            filter blocks.
        epsilon: Of training at T_max: by PLD, or at the order of a filter block.
        shares: What is reserved of filter blocks, training first.
        orders: Renyi order of each of these blocks.
    """

    job: JobSpec
    plan: Plan
    base_dir: Path
    envelopes: tuple[Envelope, ...]
    epsilon: float
    shares: tuple[RhoShare, ...] = ()
    orders: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Envelope | RhoShare, ...]:
        """What a run reserves, training first."""
        return self.envelopes + self.shares

    @property
    def output_dir(self) -> Path:
        """Folder of run folders."""
        return (self.base_dir / self.job.output).resolve()

    @property
    def training_block(self) -> str:
        """The training block whose units lose most; without owners, the only one."""
        owners = self.plan.owners
        return training_blocks(self.job)[owners.worst() if owners else 0]

    @property
    def block_owners(self) -> dict[str, str]:
        """The owner of each block that is the account of one."""
        owners = self.plan.owners
        names = [owner.name for owner in owners.members] if owners else []
        return dict(zip(training_blocks(self.job), names, strict=False))


# How the same sums are computed.
_HOW_NOT_WHAT = (("training", "memory_limit_gib"), ("model", "gradient_checkpointing"))
# Options that the format got later: without them a job keeps the digest it had.
_ADDED_LATER: dict[tuple[str, ...], dict[str, Any]] = {
    ("model", "lora"): {
        "rslora": False,
        "bias": "none",
        "modules_to_save": [],
        "dropout": 0.0,
    },
    ("model",): {"dropout": False},
    ("training",): {"autocast": None},
    ("privacy",): {
        "mode": "central",
        "owners": None,
        "accounting": "plan",
        "filter": None,
    },
    ("data", "split"): {"window": None},
}


def job_digest(job: JobSpec) -> str:
    """Returns the digest of what shapes a run: not the cluster, ledger or folders."""
    data = job.model_dump(mode="json", include=_PUBLIC_SECTIONS)
    for section, name in _HOW_NOT_WHAT:
        del data[section][name]
    for phase in data["training"]["phases"]:
        if phase.get("clipping") == "flat":
            del phase["clipping"]
        if phase.get("quantile") is None:
            del phase["quantile"]
    _leave_out_defaults(data)
    if job.privacy.unit == "record":
        for key in USER_KEYS:
            del data["privacy"][key]
    return hashlib.sha256(canonical_json(data)).hexdigest()


def _leave_out_defaults(data: dict[str, Any]) -> None:
    for place, options in _ADDED_LATER.items():
        inner = data
        for key in place:
            inner = inner[key] or {}
        for key, absent in options.items():
            if inner.get(key, ...) == absent:
                del inner[key]


def _evaluation_plan(job: JobSpec, plan: Plan, epsilon: float) -> EvaluationPlan | None:
    section = job.evaluation
    if section is None or job.data.num_validation is None:
        return None
    ends = tuple(accumulate(phase.num_steps for phase in plan.phases))
    looks = section.looks if section.looks is not None else ends
    size = job.data.num_validation
    target = section.epsilon or epsilon
    delta = section.delta or job.privacy.delta
    kind: Literal["classification", "causal_lm"] = job.model.task

    def with_sigma(sigma: float) -> EvaluationPlan:
        return EvaluationPlan(
            kind=kind,
            looks=looks,
            num_spare_looks=section.spare_looks,
            sigma=sigma,
            size=size,
            epsilon=target,
            delta=delta,
            num_bins=section.num_bins,
            loss_bound=section.loss_bound,
        )

    if job.privacy.accounting == "filter":
        return with_sigma_at_order(job, with_sigma(1.0))
    sigma = calibrate_discrete_sigma(
        target_epsilon=target,
        delta=delta,
        make_event=lambda value: with_sigma(value).event,
    )
    return with_sigma(sigma)


def _user_level(
    job: JobSpec, sample_rate: float, num_steps_max: int
) -> tuple[UserLevel | None, float | None]:
    """Returns how users are hidden, and the noise multiplier where it is known."""
    privacy = job.privacy
    if privacy.unit == "record":
        return None, privacy.noise_multiplier
    asked = privacy.user_level or "uls"
    user = UserLevel(
        kind="uls" if asked == "auto" else asked,
        max_records_per_user=privacy.max_records_per_user or 0,
        num_records=privacy.num_train_records or 0,
        contribution=privacy.user_contribution or "mean",
    )
    if asked != "auto":
        return user, privacy.noise_multiplier
    best = cheaper(
        price_user_levels(
            user,
            num_users=job.data.num_train,
            target_epsilon=privacy.epsilon or 0.0,
            delta=privacy.delta,
            sample_rate=sample_rate,
            num_steps=num_steps_max,
        )
    )
    return best.user, best.noise_multiplier


def _phase(section: PhaseSection, noise_multiplier: float) -> Phase:
    """Returns a phase of the plan; its first C and its limits are public."""
    quantile = None
    if section.clipping == "adaptive":
        asked = section.quantile or QuantileSection()
        quantile = asked.resolved(section.clip_norm, noise_multiplier)
    return Phase(
        section.name,
        section.steps,
        section.trainable,
        section.clip_norm,
        section.clipping,
        quantile,
    )


def _calibrated(
    job: JobSpec, sample_rate: float, num_steps_max: int, user: UserLevel | None
) -> float:
    target = job.privacy.epsilon or 0.0
    try:
        return calibrate_noise_multiplier(
            target_epsilon=target,
            delta=job.privacy.delta,
            sample_rate=sample_rate,
            num_steps=num_steps_max,
            user=user,
        )
    except PlanError:
        if user is None or user.kind == "uls":
            raise
        raise _without_price(f"No noise reaches epsilon {target:g}", user) from None


def _individualised(
    job: JobSpec, sample_rate: float, num_steps_max: int
) -> tuple[Owners, float]:
    """Returns the owners with their rates or clip norms, and the noise multiplier."""
    section = job.privacy.owners
    assert section is not None
    return individualise(
        [OwnerTarget(o.name, o.size, o.epsilon) for o in section.members],
        method=section.method,
        batch_size=sample_rate * job.data.num_train,
        delta=job.privacy.delta,
        num_steps=num_steps_max,
    )


def _target(job: JobSpec) -> float | None:
    """Returns what any unit may lose: with owners, the largest of theirs."""
    owners = job.privacy.owners
    if owners is None:
        return job.privacy.epsilon
    return max(owner.epsilon for owner in owners.members)


def _look_target(job: JobSpec) -> float | None:
    """Returns what the looks may cost by default: with owners, the least of theirs."""
    owners = job.privacy.owners
    return job.privacy.epsilon if owners is None else owners.evaluation_epsilon()


def _without_price(found: str, user: UserLevel | None) -> PlanError:
    if user is None or user.kind == "uls":
        return PlanError(f"{found}.", "Raise noise_multiplier, or lower sample_rate.")
    return PlanError(
        f"{found} with user_level els and max_records_per_user "
        f"{user.max_records_per_user}: all records of a user may be in one step.",
        "Set user_level: uls, lower max_records_per_user, or allow more noise.",
    )


def build_plan(job: JobSpec) -> tuple[Plan, float]:
    """Prices a job: returns its plan and the epsilon of training at T_max.

    By PLD; with accounting by filter, at the training block's order. Touches no data.

    Raises:
        PlanError: No noise reaches the target.
        ScalingError: A failure rate is out of range.
    """
    training = job.training
    size = job.data.num_train
    sample_rate = training.sample_rate or (training.batch_size or size) / size
    num_steps = job.num_steps
    interval, reserve = interval_and_reserve(job)
    many = job.cluster.workers if job.privacy.mode == "sequential" else 1
    user, sigma = _user_level(job, sample_rate, num_steps + reserve)
    owners = None
    if job.privacy.owners is not None:
        owners, sigma = _individualised(job, sample_rate, num_steps + reserve)
    if sigma is None and job.privacy.accounting == "plan":
        sigma = _calibrated(job, sample_rate, many * (num_steps + reserve), user)
    prepared = job.data.deduplicate != "none"
    fields: dict[str, Any] = {
        "unit": job.privacy.unit,
        "size": size,
        "sample_rate": sample_rate,
        "fault_reserve": reserve,
        "delta": job.privacy.delta,
        "target_epsilon": _target(job),
        "num_shares": training.noise_shares or job.cluster.most_workers,
        "grant_size": grant_size(job),
        "checkpoint_interval": interval,
        "relation_domain": "prepared" if prepared else "raw",
        "job_digest": job_digest(job),
        "user": user,
        "owners": owners,
        "independent_workers": many,
        "tolerate_missing": job.cluster.tolerate_missing,
    }
    if sigma is None:
        one = Phase("all", num_steps, "all", 1.0)
        draft = Plan(**fields, noise_multiplier=1.0, phases=(one,))
        sigma = training_sigma(job, draft)
    fields["noise_multiplier"] = sigma
    fields["phases"] = tuple(_phase(section, sigma) for section in training.phases)
    plan = Plan(**fields)
    if job.privacy.accounting == "filter":
        epsilon = training_epsilon(job, plan)
    else:
        epsilon = epsilon_of(plan.event, plan.delta)
    if not math.isfinite(epsilon):
        raise _without_price(
            f"noise_multiplier {sigma:g} leaves no finite epsilon", user
        )
    evaluation = _evaluation_plan(job, plan, _look_target(job) or epsilon)
    return Plan(**fields, evaluation=evaluation), epsilon


def _training_envelopes(job: JobSpec, plan: Plan, epsilon: float) -> list[Envelope]:
    """Returns what training takes: with owners, from the account of each its own."""
    names, owners = training_blocks(job), plan.owners
    prices = [(plan.target_epsilon or epsilon, plan.event)]
    if owners is not None:
        prices = [
            (owner.epsilon, plan.owner_event(number))
            for number, owner in enumerate(owners.members)
        ]
    return [
        Envelope.priced(name, "training", price, job.privacy.delta, event)
        for name, (price, event) in zip(names, prices, strict=True)
    ]


def build_job(job: JobSpec, base_dir: Path) -> BuiltJob:
    """Returns the job with its plan and what a run reserves."""
    plan, epsilon = build_plan(job)
    if job.privacy.accounting == "filter":
        shares, orders = shares_of(job, plan), orders_of(job, plan)
        return BuiltJob(job, plan, base_dir, (), epsilon, shares, orders)
    envelopes = _training_envelopes(job, plan, epsilon)
    if plan.evaluation is not None:
        look = plan.evaluation
        envelopes.append(
            Envelope.priced(
                job.validation_block, "evaluation", look.epsilon, look.delta, look.event
            )
        )
    return BuiltJob(job, plan, base_dir, tuple(envelopes), epsilon)
