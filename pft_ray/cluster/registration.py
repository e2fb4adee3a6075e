"""Registers a job's data set and creates its blocks, on the operator's word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.cluster.specs import block_predicates
from pft_ray.config import build_job, load_job
from pft_ray.data.prepare import prepare_data
from pft_ray.errors import InputError
from pft_ray.ledger import BlockSpec, Ledger
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
    _check_amounts(runs, epsilon, delta)
    job = load_job(job_path, overrides)
    built = build_job(job, Path(job_path).resolve().parent)
    blocks = [
        _block(built, envelope, runs, epsilon=epsilon, delta=delta)
        for envelope in built.envelopes
    ]
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
        "blocks": [
            _created(opened, block, envelope, built.block_owners.get(block.name))
            for block, envelope in zip(blocks, built.envelopes, strict=True)
        ],
    }


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


def _block(
    built: BuiltJob,
    envelope: Envelope,
    runs: int,
    *,
    epsilon: float | None,
    delta: float | None,
) -> BlockSpec:
    total = delta or multiple(envelope.delta, runs)
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
        epsilon=epsilon or multiple(envelope.epsilon, runs),
        delta=total,
    )


def _check_existing(ledger: Ledger, blocks: list[BlockSpec]) -> None:
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


def _definition(block: BlockStatus | BlockSpec) -> dict[str, Any]:
    return {
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


def multiple(value: float, count: int) -> float:
    """Returns count * value in decimal, so that ten times 1e-5 is exactly 1e-4."""
    from decimal import Decimal

    return float(Decimal(repr(value)) * count)
