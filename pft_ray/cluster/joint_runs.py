"""Reserving for several jobs that are declared together. No Ray here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.assurance.claims import collect_claims
from pft_ray.cluster.reservations import driver_ledger, give_up, plan_document
from pft_ray.cluster.run_folder import RunFolder, new_run_id
from pft_ray.config import build_job, load_job
from pft_ray.errors import InputError
from pft_ray.ledger import JointRun, joint_envelope
from pft_ray.ledger.home import ledger_location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.config import BuiltJob
    from pft_ray.ledger import Envelope, Ledger


def reserve_together(
    job_paths: Sequence[str | Path],
    *,
    ledger: str | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Reserves one run of each job, priced together; ``pft train`` continues each.

    Args:
        job_paths: Two job files or more, on the same blocks of mode plan.
        ledger: URL, or path from the current folder; default: the first job's, else
            PFT_HOME's.
        overrides: ``section.key=value`` items, for all of them.

    Returns:
        The runs, what each would cost by itself, and what they hold together.

    Raises:
        BudgetError: The blocks do not hold it; nothing was reserved.
        InputError: There are fewer than two jobs, or they are not on the same blocks.
    """
    if len(job_paths) < 2:
        raise InputError("One job is reserved together.", "Name two jobs or more.")
    jobs = [
        build_job(load_job(path, overrides), Path(path).resolve().parent)
        for path in job_paths
    ]
    _check_alike(jobs)
    location = (
        ledger_location(ledger)
        if ledger is not None
        else ledger_location(jobs[0].job.ledger.url, jobs[0].base_dir)
    )
    with driver_ledger(location) as opened:
        for output in {built.output_dir for built in jobs}:
            opened.require(collect_claims(output))
        folders = [RunFolder(b.output_dir / new_run_id(b.job.name)) for b in jobs]
        envelopes = _envelopes(jobs)
        _reserve(opened, jobs, folders, envelopes)
        left = {e.block: opened.block_status(e.block) for e in envelopes}
    return {
        "runs": [
            {"run_id": folder.run_id, "job": str(path), "epsilon": built.epsilon}
            for folder, path, built in zip(folders, job_paths, jobs, strict=True)
        ],
        "blocks": [
            {
                "name": e.block,
                "epsilon": e.epsilon,
                "delta": e.delta,
                "epsilon_left": left[e.block].remaining_epsilon,
            }
            for e in envelopes
        ],
    }


def _check_alike(jobs: list[BuiltJob]) -> None:
    first = jobs[0].job
    for built in jobs:
        job = built.job
        if built.shares or built.plan.owners is not None:
            raise InputError(
                f"Job {job.name!r} has filter blocks or owners.",
                "Jobs on blocks of mode plan, without owners, are priced together.",
            )
        if (job.training_block, job.validation_block, job.data.registration) != (
            first.training_block,
            first.validation_block,
            first.data.registration,
        ):
            raise InputError(
                f"Jobs {first.name!r} and {job.name!r} are not on the same blocks.",
                "Give both the same data.registration, privacy.block and "
                "evaluation.block.",
            )


def _envelopes(jobs: list[BuiltJob]) -> list[Envelope]:
    plans = [built.plan for built in jobs]
    job = jobs[0].job
    delta = max(plan.delta for plan in plans)
    envelopes = [joint_envelope(plans, job.training_block, "training", delta)]
    looks = [plan.evaluation for plan in plans if plan.evaluation is not None]
    if looks:
        delta = max(look.delta for look in looks)
        block = job.validation_block
        envelopes.append(joint_envelope(plans, block, "evaluation", delta))
    return envelopes


def _reserve(
    ledger: Ledger,
    jobs: list[BuiltJob],
    folders: list[RunFolder],
    envelopes: list[Envelope],
) -> None:
    """Writes each run's plan.json and reserves for all of them in one entry."""
    try:
        for built, folder in zip(jobs, folders, strict=True):
            folder.acquire()
            folder.write_json("plan.json", plan_document(built))
        runs = [
            JointRun(folder.run_id, built.plan, "")
            for built, folder in zip(jobs, folders, strict=True)
        ]
        ledger.joint.reserve(runs, envelopes)
    except BaseException:
        for folder in folders:
            give_up(ledger, folder)
        raise
    for folder in folders:
        folder.log_event("reserved", run_id=folder.run_id)
        folder.release()
