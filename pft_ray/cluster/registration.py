"""Registers a job's data set and creates its blocks, on the operator's word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.cluster.filter_budget import (
    BudgetRequest,
    created_filter,
    filter_specs,
    keys_to_set,
    multiple,
)
from pft_ray.cluster.specs import block_predicates
from pft_ray.config import build_job, load_job
from pft_ray.data.prepare import prepare_data
from pft_ray.errors import InputError
from pft_ray.ledger import BlockSpec, FilterSpec, Ledger
from pft_ray.ledger.budget import block_delta_units, block_epsilon_units
from pft_ray.ledger.home import events_file, keys_dir, ledger_location
from pft_ray.ledger.postgres_url import redacted

if TYPE_CHECKING:
    from pft_ray.config import BuiltJob
    from pft_ray.ledger import BlockStatus, Envelope


def create_budget(
    job_path: str | Path,
    *,
    runs: int = 1,
    epsilon: float | None = None,
    delta: float | None = None,
    ledger: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Registers the job's data and creates its training and validation blocks.

    With owners there is a training block for each of them, its account.

    Args:
        job_path: Job file.
        runs: How many runs of the job the blocks shall hold, without ``epsilon``.
        epsilon: Budget of each block.
        delta: Delta of each block, with ``epsilon``.
        ledger: URL, or path from the current folder; default: the job's, else
            PFT_HOME's.
        overrides: ``section.key=value`` items.

    Returns:
        What was registered and created, as JSON.

    Raises:
        InputError: A number is out of range, a block exists otherwise, or the data
            overlap another registration.
        DataError: The data cannot be read.
    """
    return create_blocks(
        job_path,
        BudgetRequest(runs, epsilon, delta),
        ledger=ledger,
        overrides=overrides,
    )


def create_blocks(
    job_path: str | Path,
    budget: BudgetRequest,
    *,
    ledger: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Does what :func:`create_budget` does; also divides filter blocks by purpose.

    Returns:
        What was registered and created, as JSON; ``set`` names the keys that the job
        needs so that its runs are priced at the blocks' orders.
    """
    _check_amounts(budget.runs, budget.epsilon, budget.delta)
    job = load_job(job_path, overrides)
    base_dir = Path(job_path).resolve().parent
    built = asked = build_job(job, base_dir)
    blocks: list[BlockSpec | FilterSpec] = [
        _block(built, envelope, budget) for envelope in built.envelopes
    ]
    if built.shares:
        built, specs = filter_specs(built, budget)
        for spec in specs:
            spec.body()  # what is wrong with it is found before anything is written
        blocks.extend(specs)
    elif budget.purposes:
        raise InputError(
            "Purposes are given for blocks of mode plan, which are never divided.",
            "Set privacy.accounting: filter, or leave --purpose out.",
        )
    location = (
        ledger_location(ledger)
        if ledger is not None
        else ledger_location(job.ledger.url, built.base_dir)
    )
    opened = Ledger.open(location, keys_dir=keys_dir(), create=True)
    opened.observers.subscribe(events_file())
    _check_existing(opened, blocks)
    prepared = prepare_data(job.data_spec(built.base_dir), opened.fingerprint_key())
    registered = opened.register_dataset(
        job.data.registration,
        public=job.data.public,
        namespaces=dict(prepared.fingerprints),
        facts={
            "num_train": job.data.num_train,
            "num_validation": job.data.num_validation,
        },
    )
    return {
        "ledger": redacted(location),
        "registration": job.data.registration,
        "registered": registered,
        "public": job.data.public,
        "blocks": _create(opened, built, blocks),
        "set": keys_to_set(asked, built),
    }


def _create(
    ledger: Ledger, built: BuiltJob, blocks: list[BlockSpec | FilterSpec]
) -> list[dict[str, Any]]:
    rows = []
    for block in blocks:
        if isinstance(block, FilterSpec):
            rows.append(created_filter(ledger, built, block))
            continue
        envelope = next(e for e in built.envelopes if e.block == block.name)
        owner = built.block_owners.get(block.name)
        rows.append(_created(ledger, block, envelope, owner))
    return rows


def _created(
    ledger: Ledger, block: BlockSpec, envelope: Envelope, owner: str | None
) -> dict[str, Any]:
    """Creates a block; returns what there is of it, as JSON."""
    created = ledger.create_block(block)
    status = ledger.block_status(block.name)
    return {
        "name": status.name,
        "created": created,
        "epsilon": status.epsilon,
        "delta": status.delta,
        "epsilon_left": status.remaining_epsilon,
        "runs_left": runs_left(status, envelope),
        **({} if owner is None else {"owner": owner}),
    }


def _check_amounts(runs: int, epsilon: float | None, delta: float | None) -> None:
    if runs < 1:
        raise InputError(f"--runs is {runs}.", "Give at least 1.")
    if (epsilon is None) != (delta is None):
        raise InputError(
            "--epsilon and --delta belong together.", "Give both, or --runs."
        )
    if epsilon is not None and delta is not None:
        block_epsilon_units(epsilon)
        block_delta_units(delta)


def _block(built: BuiltJob, envelope: Envelope, budget: BudgetRequest) -> BlockSpec:
    runs = budget.runs
    total = budget.delta or multiple(envelope.delta, runs)
    if total >= 1:
        raise InputError(
            f"{runs} runs of delta {envelope.delta:g} come to delta {total:g}.",
            "Lower --runs, or privacy.delta: a block's delta has to be below 1.",
        )
    return BlockSpec(
        name=envelope.block,
        dataset=built.job.data.registration,
        predicate=block_predicates(built.job)[envelope.block],
        unit=built.job.privacy.unit,
        epsilon=budget.epsilon or multiple(envelope.epsilon, runs),
        delta=total,
    )


def _check_existing(ledger: Ledger, blocks: list[BlockSpec | FilterSpec]) -> None:
    """Refuses before anything is written what is known under another definition."""
    known = {status.name: status for status in ledger.blocks()}
    for block in blocks:
        status = known.get(block.name)
        if status is None:
            continue
        found, wanted = _definition(status), _definition(block)
        different = [key for key in found if found[key] != wanted[key]]
        if different:
            raise InputError(
                f"Block {block.name!r} exists with another {', '.join(different)}.",
                "A block never changes: keep it as it is, or name others in "
                "privacy.block and evaluation.block.",
                {"block": block.name},
            )


def _definition(block: BlockStatus | BlockSpec | FilterSpec) -> dict[str, Any]:
    order = getattr(block, "order", None)
    budget = getattr(block, "filter", None)
    return {
        "order": budget.order if budget is not None else order,
        "dataset": block.dataset,
        "predicate": dict(block.predicate),
        "unit": block.unit,
        "epsilon": block_epsilon_units(block.epsilon),
        "delta": block_delta_units(block.delta),
    }


def runs_left(status: BlockStatus, envelope: Envelope) -> int:
    """Returns how many more runs with this envelope the block holds."""
    if status.remaining_epsilon <= 0 or status.remaining_delta <= 0:
        return 0
    return min(
        block_epsilon_units(status.remaining_epsilon) // envelope.epsilon_units,
        block_delta_units(status.remaining_delta) // envelope.delta_units,
    )
