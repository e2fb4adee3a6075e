"""The plan: one frozen value from which everything private is built.

Sampler, clipping, noise and the accounted event all read the same plan, so what is
charged is what is executed. A plan holds public values only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pft_ray.accounting.events import (
    Composed,
    DiscreteGaussian,
    Event,
    PoissonGaussian,
    PoissonMixture,
    Repeat,
    check_below_one_nth,
    check_count,
    check_count_or_zero,
    check_positive,
    check_rate,
    check_word,
    store,
)
from pft_ray.accounting.independent import check_independent, independent_event
from pft_ray.accounting.owners import Owners
from pft_ray.accounting.quantile import QuantileClipping
from pft_ray.accounting.tolerance import check_tolerance
from pft_ray.errors import PlanError

PLAN_VERSION = 1
# Fields that plans got later: without them a plan keeps the digest it had.
_ADDED_LATER = {
    "user": None,
    "owners": None,
    "independent_workers": 1,
    "tolerate_missing": 0,
}
Unit = Literal["record", "user"]
Clipping = Literal["flat", "automatic", "per_layer", "adaptive"]
LookKind = Literal["classification", "causal_lm"]
RelationDomain = Literal["raw", "prepared"]
UserKind = Literal["uls", "els"]
Contribution = Literal["mean", "sum"]


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """Returns the one byte form of a JSON value: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value).encode()


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one trainable set and one clip norm.

    ``trainable`` names the parameter set: ``head``, ``adapter``, ``all`` or a sum
    of them such as ``adapter+head``. ``clipping`` says how a unit's contribution is
    bounded to C: as a whole, normalised, or layer by layer; the event is the same. With
    ``adaptive`` it is bounded as a whole, ``clip_norm`` is the first C and ``quantile``
    says how C moves.
    """

    name: str
    num_steps: int
    trainable: str
    clip_norm: float
    clipping: Clipping = "flat"
    quantile: QuantileClipping | None = None

    def __post_init__(self) -> None:
        check_word(self.clipping, Clipping, f"clipping of phase {self.name!r}")
        store(
            self,
            num_steps=check_count(self.num_steps, f"num_steps of phase {self.name!r}"),
            clip_norm=check_positive(
                self.clip_norm, f"clip_norm of phase {self.name!r}"
            ),
        )
        if (self.clipping == "adaptive") != (self.quantile is not None):
            raise PlanError(
                f"Phase {self.name!r} has clipping {self.clipping} "
                f"{'with' if self.quantile else 'without'} a quantile.",
                "Give a quantile with adaptive clipping, and with no other.",
            )
        if self.quantile is not None:
            self.quantile.check_start(self.clip_norm)


def _phase_of(fields: dict[str, Any]) -> Phase:
    if "quantile" in fields:
        fields = fields | {"quantile": QuantileClipping(**fields["quantile"])}
    return Phase(**fields)


@dataclass(frozen=True)
class EvaluationPlan:
    """The looks at the validation block: when, what kind, under how much noise.

    Attributes:
        kind: ``classification`` releases the counts of right and wrong answers and
            a histogram of scores by class (two histograms a look; a unit is in one
            cell of each); ``causal_lm`` releases one sum of losses, each clipped to
            ``loss_bound`` and counted from the middle of its range in
            ``loss_levels`` steps up or down (integer sensitivity ``loss_levels``).
        looks: Step counts after which a look happens, increasing.
        num_spare_looks: Looks paid for beside these, for looks lost to a crash.
        sigma: Noise scale of the discrete Gaussian in units of sensitivity.
        size: Declared (public) number of validation units.
        epsilon: What all looks together may cost the validation block.
        delta: The same for delta.
        num_bins: Score bins a class; even, so that one edge is the threshold 1/2.
        loss_bound: Largest loss a unit may contribute, in nats.
        loss_levels: Integer steps from the middle of the loss range to its ends.
    """

    kind: LookKind
    looks: tuple[int, ...]
    num_spare_looks: int
    sigma: float
    size: int
    epsilon: float
    delta: float
    num_bins: int = 20
    loss_bound: float = 10.0
    loss_levels: int = 1024

    def __post_init__(self) -> None:
        check_word(self.kind, LookKind, "evaluation kind")
        for name in ("sigma", "epsilon", "delta", "loss_bound"):
            value = check_positive(getattr(self, name), f"evaluation {name}")
            store(self, **{name: value})
        for name in ("size", "num_bins", "loss_levels"):
            value = check_count(getattr(self, name), f"evaluation {name}")
            store(self, **{name: value})
        spare = check_count_or_zero(self.num_spare_looks, "num_spare_looks")
        store(self, num_spare_looks=spare)
        looks = tuple(check_count_or_zero(step, "look") for step in self.looks)
        if not looks or list(looks) != sorted(set(looks)):
            raise PlanError(
                f"The looks are {looks}.", "Give at least one step, in rising order."
            )
        object.__setattr__(self, "looks", looks)
        if self.num_bins % 2:
            raise PlanError(f"num_bins is {self.num_bins}.", "Give an even number.")
        check_below_one_nth(self.delta, self.size)

    @property
    def num_looks_max(self) -> int:
        """Looks that are paid for, spare ones included."""
        return len(self.looks) + self.num_spare_looks

    @property
    def look_event(self) -> Event:
        """The event of one look."""
        if self.kind == "classification":
            return Repeat(DiscreteGaussian(self.sigma, 1), 2)
        levels = self.loss_levels
        return DiscreteGaussian(self.sigma * levels, levels)

    @property
    def event(self) -> Event:
        """The event of all looks that are paid for."""
        return Repeat(self.look_event, self.num_looks_max)


@dataclass(frozen=True)
class UserLevel:
    """How all records of a user are hidden together. All public.

    Attributes:
        kind: ``uls`` samples users and clips the contribution of a user once; ``els``
            samples records, clips each, and counts what a user's records do together.
        max_records_per_user: Records of a user that are used at most.
        num_records: Declared number of training records of all users after that cap.
        contribution: Whether a user contributes the mean or the sum of the gradients
            of its records; ``uls`` only.
    """

    kind: UserKind
    max_records_per_user: int
    num_records: int
    contribution: Contribution = "mean"

    def __post_init__(self) -> None:
        check_word(self.kind, UserKind, "user_level")
        check_word(self.contribution, Contribution, "user_contribution")
        for name in ("max_records_per_user", "num_records"):
            store(self, **{name: check_count(getattr(self, name), name)})

    def step_event(self, sample_rate: float, noise_multiplier: float) -> Event:
        """Returns what one step does to a user."""
        if self.kind == "uls":
            return PoissonGaussian(sample_rate, noise_multiplier)
        return PoissonMixture(sample_rate, noise_multiplier, self.max_records_per_user)


@dataclass(frozen=True)
class Plan:
    """Everything that decides privacy, fixed before data is read.

    Attributes:
        unit: Whose presence is hidden.
        size: Declared number n of training units; never counted from data.
        sample_rate: Probability q that a unit is in a step; with ``els``, a record.
        noise_multiplier: Noise standard deviation over clip norm.
        phases: Stretches of the T planned steps.
        fault_reserve: F extra steps that pay for steps run again after a fault.
        delta: Of the training guarantee.
        target_epsilon: What the job asked for; None when sigma was given.
        num_shares: V, the fixed number of noise shares; each has numerator 1 of V, or
            of V - t when t may be absent.
        grant_size: Steps a grant covers at most.
        checkpoint_interval: Steps between registered checkpoints.
        evaluation: The looks, or None.
        relation_domain: ``raw`` or ``prepared`` list of units.
        job_digest: Digest of the public job settings that shape the run.
        user: How users are hidden; for the unit ``user``, and only there.
        owners: Owners with epsilons of their own; ``sample_rate`` is then their mean.
        independent_workers: Workers that each draw from all units, with whole noise.
        tolerate_missing: t, the shares of V that may be absent from a roster.
    """

    unit: Unit
    size: int
    sample_rate: float
    noise_multiplier: float
    phases: tuple[Phase, ...]
    fault_reserve: int
    delta: float
    target_epsilon: float | None = None
    num_shares: int = 1
    grant_size: int = 1
    checkpoint_interval: int = 1
    evaluation: EvaluationPlan | None = None
    relation_domain: RelationDomain = "raw"
    job_digest: str = ""
    user: UserLevel | None = None
    owners: Owners | None = None
    independent_workers: int = 1
    tolerate_missing: int = 0

    def __post_init__(self) -> None:
        check_word(self.unit, Unit, "unit")
        check_word(self.relation_domain, RelationDomain, "relation_domain")
        for name in ("size", "num_shares", "grant_size", "checkpoint_interval"):
            store(self, **{name: check_count(getattr(self, name), name)})
        for name in ("noise_multiplier", "delta"):
            store(self, **{name: check_positive(getattr(self, name), name)})
        store(
            self,
            sample_rate=check_rate(self.sample_rate),
            fault_reserve=check_count_or_zero(self.fault_reserve, "fault_reserve"),
        )
        if self.target_epsilon is not None:
            target = check_positive(self.target_epsilon, "target_epsilon")
            store(self, target_epsilon=target)
        if not self.phases:
            raise PlanError("The plan has no phase.", "Add at least one phase.")
        object.__setattr__(self, "phases", tuple(self.phases))
        for phase in self.phases:
            if phase.quantile is not None:
                phase.quantile.check_noise(self.noise_multiplier)
        if (self.unit == "user") != (self.user is not None):
            raise PlanError(
                f"The plan's unit is {self.unit} "
                f"{'with' if self.user else 'without'} a user level.",
                "Say uls or els for the unit user, and nothing for others.",
            )
        check_below_one_nth(self.delta, self.size)
        check_independent(self)
        check_tolerance(self)
        if self.owners is not None:
            self.owners.check_fits(
                self.size,
                by_records=self.user is not None and self.user.kind == "els",
                moving_clip=any(phase.quantile is not None for phase in self.phases),
            )

    @property
    def num_steps(self) -> int:
        """T, the planned steps."""
        return sum(phase.num_steps for phase in self.phases)

    @property
    def num_steps_max(self) -> int:
        """T_max = T + F: what is charged and what epsilon is computed at."""
        return self.num_steps + self.fault_reserve

    @property
    def expected_batch_size(self) -> float:
        """Expected units a step, q times n: the public normaliser of every step.

        With ``els`` records are counted; with owners it is the sum of q_i n_i.
        """
        if self.owners is not None:
            return self.owners.expected_batch_size
        rate = self.sample_rate * self.independent_workers
        if self.user is not None and self.user.kind == "els":
            return rate * self.user.num_records
        return rate * self.size

    @property
    def step_event(self) -> Event:
        """The event of one step; with owners, that of the one that loses most."""
        if self.owners is not None:
            return self.owners.step_event(self.owners.worst(), self.noise_multiplier)
        if self.user is not None:
            return self.user.step_event(self.sample_rate, self.noise_multiplier)
        return independent_event(self)

    @property
    def event(self) -> Event:
        """The event the training block is charged: T_max steps."""
        return Repeat(self.step_event, self.num_steps_max)

    def owner_event(self, number: int) -> Event:
        """The event of T_max steps for a unit of one owner."""
        if self.owners is None:
            raise PlanError("The plan has no owners.", "Use event.")
        sigma = self.noise_multiplier
        return Repeat(self.owners.step_event(number, sigma), self.num_steps_max)

    @property
    def complete_event(self) -> Event:
        """Training and evaluation events together (they charge separate blocks)."""
        if self.evaluation is None:
            return self.event
        return Composed((self.event, self.evaluation.event))

    def phase_at(self, step: int) -> tuple[int, Phase]:
        """Returns (index, phase) of the planned step ``step``, from 0."""
        start = 0
        for index, phase in enumerate(self.phases):
            start += phase.num_steps
            if step < start:
                return index, phase
        raise PlanError(f"Step {step} lies beyond the plan's {self.num_steps} steps.")

    def phase_end(self, step: int) -> int:
        """Returns the first step after the phase that ``step`` lies in."""
        index, _ = self.phase_at(step)
        return sum(phase.num_steps for phase in self.phases[: index + 1])

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON, with its version."""
        data = asdict(self)
        for phase in data["phases"]:
            if phase["clipping"] == "flat":  # plans keep the digest they had
                del phase["clipping"]
            if phase["quantile"] is None:
                del phase["quantile"]
        for name, absent in _ADDED_LATER.items():
            if data[name] == absent:
                del data[name]
        data["version"] = PLAN_VERSION
        return json.loads(canonical_json(data))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Reads a plan written by :meth:`to_dict`.

        Raises:
            PlanError: Another version, or a field is missing, extra or out of range.
        """
        fields = dict(data)
        version = fields.pop("version", None)
        if version != PLAN_VERSION:
            raise PlanError(
                f"A plan of version {version!r}; this pft_ray reads {PLAN_VERSION}.",
                "Use the pft_ray version that wrote it.",
            )
        try:
            fields["phases"] = tuple(map(_phase_of, fields["phases"]))
            if fields.get("evaluation") is not None:
                looks = dict(fields["evaluation"])
                looks["looks"] = tuple(looks["looks"])
                fields["evaluation"] = EvaluationPlan(**looks)
            if fields.get("user") is not None:
                fields["user"] = UserLevel(**fields["user"])
            if fields.get("owners") is not None:
                fields["owners"] = Owners.from_dict(fields["owners"])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise PlanError(f"A plan with wrong fields: {error}.") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical plan, as hex. A plan holds public values only."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()
