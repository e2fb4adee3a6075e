"""Registers a job's data set and creates its blocks, on the operator's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pft_ray.cluster.specs import data_spec, split_predicate
from pft_ray.config import build_job, load_job
from pft_ray.data.prepare import prepare_data
from pft_ray.errors import InputError
from pft_ray.ledger import BlockSpec, Ledger
from pft_ray.ledger.home import keys_dir, ledger_location


def create_budget(
    job_path: Path,
    *,
    runs: int = 1,
    epsilon: float | None = None,
    delta: float | None = None,
    ledger: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Registers the job's data and creates its training and validation blocks.

    Args:
        job_path: Job file.
        runs: How many runs of the job the blocks shall hold, without ``epsilon``.
        epsilon: Budget of each block.
        delta: Delta of each block, with ``epsilon``.
        ledger: URL or path; default: the job's, else PFT_HOME's.
        overrides: ``section.key=value`` items.

    Returns:
        What was registered and created, as JSON.

    Raises:
        InputError: A number is out of range.
        DataError: The data cannot be read or overlap another registration.
    """
    if runs < 1:
        raise InputError(f"--runs is {runs}.", "Give at least 1.")
    if (epsilon is None) != (delta is None):
        raise InputError(
            "--epsilon and --delta belong together.", "Give both, or --runs."
        )
    job = load_job(job_path, overrides)
    built = build_job(job, Path(job_path).resolve().parent)
    location = ledger_location(ledger or job.ledger.url, built.base_dir)
    opened = Ledger.open(location, keys_dir=keys_dir(), create=True)
    prepared = prepare_data(data_spec(job, built.base_dir), opened.fingerprint_key())
    registered = opened.register_dataset(
        job.data.registration,
        public=job.data.public,
        namespaces=dict(prepared.fingerprints),
        facts={
            "num_train": job.data.num_train,
            "num_validation": job.data.num_validation,
        },
    )
    rows = []
    for envelope in built.envelopes:
        role = "train" if envelope.purpose == "training" else "validation"
        created = opened.create_block(
            BlockSpec(
                name=envelope.block,
                dataset=job.data.registration,
                predicate=split_predicate(job, role),
                unit=job.privacy.unit,
                epsilon=epsilon or multiple(envelope.epsilon, runs),
                delta=delta or multiple(envelope.delta, runs),
            )
        )
        status = opened.block_status(envelope.block)
        rows.append(
            {
                "name": status.name,
                "created": created,
                "epsilon": status.epsilon,
                "delta": status.delta,
                "epsilon_left": status.remaining_epsilon,
            }
        )
    return {
        "ledger": location,
        "registration": job.data.registration,
        "registered": registered,
        "public": job.data.public,
        "blocks": rows,
    }


def multiple(value: float, count: int) -> float:
    """Returns count * value in decimal, so that ten times 1e-5 is exactly 1e-4."""
    from decimal import Decimal

    return float(Decimal(repr(value)) * count)
