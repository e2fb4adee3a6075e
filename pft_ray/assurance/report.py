"""The released report: plan values, ledger position, noised results, nothing else.

A report is itself a release. It is built from public facts and from outputs of
mechanisms that the budget paid for. What happened while a run went on (how often it
started anew, how long it took, how many steps it made, what the data held) has no
input here, so it cannot be told.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pft_ray import __version__
from pft_ray.assurance.block_prices import (
    TRAINING,
    block_key,
    owner_accounts,
    words_of,
)
from pft_ray.assurance.losses import (
    block_fields,
    filter_fields,
    prices_of,
    stated_epsilon,
    whole_loss,
)
from pft_ray.assurance.modes import mode_fields
from pft_ray.assurance.wording import (
    INTERVAL_NOTE,
    guarantee_sentence,
    not_covered,
    relation_note,
    scope_note,
    unit_phrase,
    user_note,
)
from pft_ray.errors import InputError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pft_ray.accounting.plan import Phase, Plan

SCHEMA_VERSION = 1
_RESULT_FIELDS = {"metric", "private", "interval"}
_METRIC_FIELDS = _RESULT_FIELDS | {"trivial", "non_private"}
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class BlockLine:
    """A block that the run reserved on.

    Attributes:
        name: Name of the block.
        role: ``training`` or ``evaluation``.
        epsilon: Whole budget of the block.
        delta: Whole budget of the block.
        run_epsilon: What this run took of it.
        run_delta: What this run took of it.
        epsilon_reserved: What all runs so far took of it, this one included.
        overlapping: Names of blocks that may hold the same units as this one.
        owner: The owner whose account it is; None for a block of all units.
        mode: ``plan`` or ``filter``. Of a filter block ``run_epsilon`` is all that the
            run reserved there, for both roles, and other runs are not told.
        order: Renyi order of a filter block.
    """

    name: str
    role: str
    epsilon: float
    delta: float
    run_epsilon: float
    run_delta: float
    epsilon_reserved: float
    overlapping: tuple[str, ...] = ()
    owner: str | None = None
    mode: str = "plan"
    order: int | None = None


@dataclass(frozen=True)
class Look:
    """Released results of one look at the validation block.

    Attributes:
        step: Planned step after which the look happened.
        phase: Name of the phase that it belongs to.
        metrics: One object a metric: ``metric``, ``private``, ``interval`` [low,
            high], ``trivial`` and ``non_private`` (None or left out when there is
            none).
    """

    step: int
    phase: str
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class ReportFacts:
    """All that a report may be made of: public, or released through a mechanism.

    Attributes:
        run_id: The run.
        job_name: Name of the job.
        plan: The frozen plan.
        epsilon_by_accountant: Training epsilon at T_max, by ``pld`` and ``rdp``; of a
            filter run ``rdp`` is at its order and ``pld`` None.
        blocks: The blocks that the run reserved on.
        training_block: Name of the block that training is paid from; with owners,
            that of the one whose units lose most.
        looks: Released results, oldest first.
        workers: Declared number of workers.
        public: Whether the data set is registered as public.
        reservation_sequence: Number of the reservation among reservations.
        reservation_root: Chain hash of the reservation's row, hex.
        model: The public base model as the job names it.
        registration: Name of the registered data set.
        curve: (steps, epsilon) pairs, at most 20, computed before training.
        user_column: Column whose values are the users, when these are the unit.
        last_clip_norms: C of each phase after its last step, when one of them moves.
        num_colluding: Owners that put together what they know, in the owners' lines.
    """

    run_id: str
    job_name: str
    plan: Plan
    epsilon_by_accountant: Mapping[str, float | None]
    blocks: tuple[BlockLine, ...]
    training_block: str
    looks: tuple[Look, ...]
    workers: int
    public: bool
    reservation_sequence: int
    reservation_root: str
    model: str
    registration: str
    curve: tuple[tuple[int, float], ...] = ()
    user_column: str | None = None
    last_clip_norms: tuple[float, ...] = ()
    num_colluding: int = 1

    @property
    def has_baseline(self) -> bool:
        """Whether a result of a non-private run is among the results."""
        return any(
            metric.get("non_private") is not None
            for look in self.looks
            for metric in look.metrics
        )


def build_report(facts: ReportFacts) -> dict[str, Any]:
    """Returns the contents of report.json.

    Guarantee:
        The result is a function of the plan, the reservation and released values
        alone. ``epsilon`` and ``delta`` hold for every unit of every block of the
        run: a training block at PLD of T_max steps (with owners, as they are for a
        unit of its owner), the evaluation block at PLD of all looks that are paid for;
        filter blocks at the whole reservation. Blocks that may hold the same unit are
        summed, the others give the maximum. Neither depends on how far a run went.

    Raises:
        VerificationError: The facts contradict the plan: another epsilon than the
            plan's, or more than the run took from a block.
        InputError: A block is missing, a result has unknown fields or numbers that
            are not finite, or private data come with a non-private result.
    """
    _check_blocks(facts)
    _check_looks(facts)
    plan = facts.plan
    epsilon, delta = whole_loss(facts)
    training = _line(facts, TRAINING)
    utility_all = [_look(look) for look in facts.looks]
    return {
        "schema_version": SCHEMA_VERSION,
        "pft_ray_version": __version__,
        "run_id": facts.run_id,
        "status": "released",
        "unit": plan.unit,
        **_user(facts),
        **mode_fields(
            plan, facts.workers, facts.num_colluding, owner_accounts(facts.blocks)
        ),
        **filter_fields(facts.blocks),
        "relation": "add_remove",
        "relation_domain": plan.relation_domain,
        "relation_note": relation_note(plan.unit, plan.relation_domain),
        "guarantee_scope": "demonstration" if facts.public else "fine-tuning data",
        "scope_note": scope_note(public=facts.public, baseline=facts.has_baseline),
        "guarantee": guarantee_sentence(
            epsilon,
            delta,
            unit_phrase(plan.unit, facts.user_column),
            plan.relation_domain,
            baseline=facts.has_baseline,
        ),
        "not_covered": not_covered(plan.unit),
        "epsilon": epsilon,
        "delta": delta,
        "target_epsilon": plan.target_epsilon,
        "epsilon_by_accountant": {
            name: facts.epsilon_by_accountant[name] for name in ("pld", "rdp")
        },
        "block": {
            "name": training.name,
            "epsilon": training.epsilon,
            "delta": training.delta,
        },
        "blocks": [_block(line) for line in facts.blocks],
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "clip_norm": _clip_norm(plan),
        "phases": [_phase(phase) for phase in plan.phases],
        **_last_clip_norms(facts),
        "num_steps_planned": plan.num_steps,
        "num_steps_max": plan.num_steps_max,
        "workers": facts.workers,
        "utility": utility_all[-1]["metrics"][0] if utility_all else None,
        "utility_all": utility_all,
        "interval_note": INTERVAL_NOTE,
        "ledger": {
            "sequence": facts.reservation_sequence,
            "root": facts.reservation_root,
        },
        "plan_digest": plan.digest,
    }


def _user(facts: ReportFacts) -> dict[str, Any]:
    """Returns what a report says of users; nothing when the unit is the record."""
    user = facts.plan.user
    if user is None:
        return {}
    return {
        "unit_note": user_note(user, facts.user_column),
        "user_column": facts.user_column,
        "user": asdict(user),
    }


def _line(facts: ReportFacts, role: str) -> BlockLine:
    """Returns the line of a role; the training line is that of training_block."""
    for line in facts.blocks:
        if line.role == role and (
            role != TRAINING or line.name == facts.training_block
        ):
            return line
    raise InputError(
        f"The report has no {role} block.", "Give the blocks that the run reserved on."
    )


def _check_blocks(facts: ReportFacts) -> None:
    prices = prices_of(facts)
    found = [block_key(line) for line in facts.blocks]
    if len(set(found)) != len(found) or set(found) != set(prices):
        raise InputError(
            f"The report has blocks for {words_of(found)}; the plan has "
            f"{words_of(prices)}.",
            "Give each block that the run reserved on once.",
        )
    training = _line(facts, TRAINING)
    for line in facts.blocks:
        epsilon, delta = prices[block_key(line)]
        if not (
            epsilon <= line.run_epsilon + _TOLERANCE
            and delta <= line.run_delta * (1 + _TOLERANCE)
            and line.run_epsilon <= line.epsilon_reserved + _TOLERANCE
            and line.epsilon_reserved <= line.epsilon + _TOLERANCE
        ):
            raise VerificationError(
                f"The budget of block {line.name!r} does not cover the plan: it costs "
                f"epsilon {epsilon:.6g}, the run took {line.run_epsilon:.6g}, all runs "
                f"{line.epsilon_reserved:.6g} of {line.epsilon:.6g}.",
                "Check the ledger with `pft budget verify`.",
            )
    priced = prices[block_key(training)][0]
    stated = stated_epsilon(facts)
    if not abs(stated - priced) <= _TOLERANCE:
        raise VerificationError(
            f"The report would state epsilon {stated:.6g}; the plan's at "
            f"{facts.plan.num_steps_max} steps is {priced:.6g}.",
            "State the plan's epsilon at T_max, whatever the run did.",
        )


def _check_looks(facts: ReportFacts) -> None:
    for look in facts.looks:
        if not look.metrics:
            raise InputError(f"The look at step {look.step} has no result.")
        for metric in look.metrics:
            _check_metric(metric, look.step)
    if facts.has_baseline and not facts.public:
        raise InputError(
            "A report on private data with a result of a non-private run.",
            "Only data registered as public may have a baseline.",
        )


def _check_metric(metric: dict[str, Any], step: int) -> None:
    if not _RESULT_FIELDS <= set(metric) <= _METRIC_FIELDS:
        raise InputError(
            f"A result of the look at step {step} has the fields {sorted(metric)}.",
            f"A report takes {sorted(_METRIC_FIELDS)} and nothing else.",
        )
    low, high = metric["interval"]
    numbers = [metric["private"], low, high]
    numbers += [
        metric[k] for k in ("trivial", "non_private") if metric.get(k) is not None
    ]
    if not all(math.isfinite(number) for number in numbers) or low > high:
        raise InputError(
            f"{metric['metric']} of the look at step {step} is not a number with an "
            "interval.",
            "Leave the metric out when its noisy counts do not define it.",
        )


def _look(look: Look) -> dict[str, Any]:
    return {
        "step": look.step,
        "phase": look.phase,
        "metrics": [_metric(metric) for metric in look.metrics],
    }


def _metric(metric: dict[str, Any]) -> dict[str, Any]:
    """Returns a result with its absent parts left out."""
    low, high = metric["interval"]
    result = {
        "metric": str(metric["metric"]),
        "private": float(metric["private"]),
        "interval": [float(low), float(high)],
    }
    for name in ("trivial", "non_private"):
        if metric.get(name) is not None:
            result[name] = float(metric[name])
    return result


def _block(line: BlockLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "role": line.role,
        "epsilon": line.epsilon,
        "delta": line.delta,
        "run_epsilon": line.run_epsilon,
        "run_delta": line.run_delta,
        **({} if line.owner is None else {"owner": line.owner}),
        **block_fields(line),
    }


def _phase(phase: Phase) -> dict[str, Any]:
    """Returns a phase of the plan; a quantile only where C moves."""
    fields = asdict(phase)
    if phase.quantile is None:
        del fields["quantile"]
    return fields


def _last_clip_norms(facts: ReportFacts) -> dict[str, Any]:
    """Returns the last C of each phase; nothing when no phase moves its C.

    Each is a function of the noisy counts that the steps released.
    """
    if not any(phase.quantile is not None for phase in facts.plan.phases):
        return {}
    if len(facts.last_clip_norms) != len(facts.plan.phases):
        raise InputError(
            f"The report has {len(facts.last_clip_norms)} last clip norms for "
            f"{len(facts.plan.phases)} phases.",
            "Give one a phase.",
        )
    return {"last_clip_norm": list(facts.last_clip_norms)}


def _clip_norm(plan: Plan) -> float | list[float]:
    """Returns the clip norm, or a list in the order of phases when they differ."""
    norms = [phase.clip_norm for phase in plan.phases]
    return norms[0] if len(set(norms)) == 1 else norms
