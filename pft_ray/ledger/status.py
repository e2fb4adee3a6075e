"""Views of the state for display and JSON: copies that cannot change the ledger."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.ledger.budget import Envelope, delta_value, epsilon_value
from pft_ray.ledger.filter_status import FilterStatus, budget_figures

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.entries import Position
    from pft_ray.ledger.records import Block, Run
    from pft_ray.ledger.shares import RhoShare
    from pft_ray.ledger.state import LedgerState


@dataclass(frozen=True)
class BlockStatus:
    """A block's budget and what runs took of it.

    ``reserved`` counts every envelope that was not given back, ``used`` those whose
    run was charged, ``remaining`` what the next run may reserve. ``num_waiting`` runs
    are in the queue for a part of it. ``overlapping`` names
    the blocks that may hold the same units: a unit's whole loss is at most the sum over
    its block and these. A filter block counts in ``filter``; its epsilons are units
    converted at its order.
    """

    name: str
    dataset: str
    public: bool
    predicate: dict[str, Any]
    unit: str
    mode: str
    epsilon: float
    reserved_epsilon: float
    used_epsilon: float
    remaining_epsilon: float
    delta: float
    reserved_delta: float
    used_delta: float
    remaining_delta: float
    num_reservations: int
    num_waiting: int
    num_non_private: int
    overlapping: tuple[str, ...]
    filter: FilterStatus | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the status as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RunStatus:
    """A run as the ledger knows it; for the operator, not for release.

    ``reservation`` is its place among all entries, 0 while it waits. ``time_limit_s``
    is None when its reservation has no time limit. ``open_attempt`` and ``next_step``
    are None while no attempt is open. ``checkpoints`` are names, oldest first. Runs of
    one ``group`` were declared together and share their envelopes.
    """

    run_id: str
    name: str
    status: str
    is_final: bool
    plan: Plan
    plan_digest: str
    envelopes: tuple[Envelope, ...]
    shares: tuple[RhoShare, ...]
    group: tuple[str, ...]
    reservation: Position
    time_limit_s: float | None
    epoch: int
    num_attempts: int
    open_attempt: int | None
    next_step: int | None
    num_steps: int
    num_steps_max: int
    num_steps_charged: int
    num_steps_released: int
    num_looks_max: int
    num_looks_charged: int
    checkpoints: list[str]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks that it reserved on, one a part."""
        names = [envelope.block for envelope in self.envelopes]
        return (*names, *(share.block for share in self.shares))

    def to_dict(self) -> dict[str, Any]:
        """Returns the status as JSON."""
        fields = dict(vars(self))
        fields["plan"] = self.plan.to_dict()
        fields["envelopes"] = [envelope.to_dict() for envelope in self.envelopes]
        fields["shares"] = [share.to_dict() for share in self.shares]
        fields["reservation"] = self.reservation._asdict()
        return fields


def block_status(state: LedgerState, block: Block) -> BlockStatus:
    """Returns the status of a block of the state."""
    return BlockStatus(
        name=block.name,
        dataset=block.dataset,
        public=state.datasets[block.dataset].public,
        predicate=deepcopy(block.predicate),
        unit=block.unit,
        mode=block.mode,
        epsilon=epsilon_value(block.epsilon_units),
        delta=delta_value(block.delta_units),
        **budget_figures(block),
        num_reservations=block.num_reservations,
        num_waiting=sum(block.name in state.runs[run].blocks for run in state.waiting),
        num_non_private=block.num_non_private,
        overlapping=tuple(
            other.name
            for other in state.blocks.values()
            if other is not block and not block.is_disjoint_from(other)
        ),
    )


def run_ids_of(state: LedgerState, block: str) -> tuple[str, ...]:
    """Returns the runs that hold, or held, an envelope on the block."""
    return tuple(run.run_id for run in state.runs.values() if block in run.blocks)


def run_status(run: Run) -> RunStatus:
    """Returns the status of a run of the state."""
    attempt = run.open_attempt
    evaluation = run.plan.evaluation
    return RunStatus(
        run_id=run.run_id,
        name=run.name,
        status=run.status,
        is_final=run.is_final,
        plan=run.plan,
        plan_digest=run.plan_digest,
        envelopes=run.envelopes,
        shares=run.shares,
        group=run.group,
        reservation=run.reservation,
        time_limit_s=run.time_limit_ms / 1000 if run.time_limit_ms else None,
        epoch=run.epoch,
        num_attempts=len(run.attempts),
        open_attempt=attempt.number if attempt else None,
        next_step=attempt.next_step if attempt else None,
        num_steps=run.num_steps,
        num_steps_max=run.num_steps_max,
        num_steps_charged=run.num_steps_charged,
        num_steps_released=run.num_steps_released,
        num_looks_max=evaluation.num_looks_max if evaluation else 0,
        num_looks_charged=len(run.looks),
        checkpoints=[checkpoint.name for checkpoint in run.checkpoints],
    )
