"""Writes a run's results: the released report, and what is for the operator only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.assurance.report import BlockLine, Look, ReportFacts, build_report
from pft_ray.assurance.report_html import render_html
from pft_ray.assurance.utility import evaluation_utility
from pft_ray.cluster.filter_jobs import by_accountant, curve_of, filter_lines
from pft_ray.cluster.run_folder import EVENTS_FILE
from pft_ray.cluster.scaling_plot import write_scaling_plot
from pft_ray.cluster.scaling_story import read_story
from pft_ray.telemetry import get_logger
from pft_ray.training.headers import write_file

if TYPE_CHECKING:
    from pft_ray.cluster.fit import FitOutcome
    from pft_ray.cluster.run_folder import RunFolder
    from pft_ray.config import BuiltJob
    from pft_ray.ledger import Ledger

RELEASED = ("completed", "budget_exhausted")
_LOG = get_logger("pft_ray.summary")


def write_results(
    built: BuiltJob,
    ledger: Ledger,
    folder: RunFolder,
    outcome: FitOutcome,
    *,
    released: dict[int, int],
    elapsed_s: float,
) -> dict[str, Any] | None:
    """Writes operator.json, and the report when a model was released.

    Args:
        built: The job and its plan.
        ledger: The ledger; the run's end is written to it afterwards.
        folder: The run's folder.
        outcome: How the worker group ended.
        released: Steps made by attempt.
        elapsed_s: From starting Ray to the end.

    Returns:
        The contents of report.json, or None when nothing was released.
    """
    folder.write_json(
        "operator.json",
        operator_document(
            ledger,
            folder,
            outcome,
            released,
            elapsed_s,
            is_elastic=built.job.cluster.elastic is not None,
        ),
        private=True,
    )
    report = None
    if outcome.status in RELEASED:
        facts = report_facts(built, ledger, folder.run_id, outcome.worker)
        report = build_report(facts)
        folder.write_json("report.json", report)
        write_file(folder.path / "report.html", render_html(report, facts).encode())
    if built.job.cluster.elastic is not None:
        try:
            write_scaling_plot(folder.path)
        except Exception as error:  # noqa: BLE001 - a picture is no reason to fail
            _LOG.warning("no picture of the sizes: %s", type(error).__name__)
    return report


def operator_document(
    ledger: Ledger,
    folder: RunFolder,
    outcome: FitOutcome,
    released: dict[int, int],
    elapsed_s: float,
    *,
    is_elastic: bool = False,
) -> dict[str, Any]:
    """Returns operator.json: counts, times and causes, never served or exported."""
    status = ledger.run_status(folder.run_id)
    position = ledger.position()
    worker = outcome.worker
    return {
        "run_id": folder.run_id,
        "status": outcome.status,
        "attempts": status.num_attempts,
        "num_steps_charged": status.num_steps_charged,
        "num_steps_released": sum(released.values()),
        "released_by_attempt": {str(k): v for k, v in sorted(released.items())},
        "num_steps_in_model": worker.get("step"),
        "clip_norms": worker.get("clip_norms"),
        "looks_charged": status.num_looks_charged,
        "data": worker.get("data"),
        "num_faulty_records": worker.get("num_faulty"),
        "one_unit_at_a_time": worker.get("one_unit_at_a_time"),
        "timings_s": {
            "total": round(elapsed_s, 3),
            **{k: round(v, 3) for k, v in worker.get("timings_s", {}).items()},
        },
        "waited_for_coordinator_s": worker.get("waited_for_coordinator_s"),
        "exit_cause": outcome.cause,
        "ledger": {
            "ledger_id": ledger.ledger_id,
            "sequence": position.sequence,
            "root": position.root,
        },
        **({} if not is_elastic else read_story(folder.path / EVENTS_FILE)),
    }


def report_facts(
    built: BuiltJob, ledger: Ledger, run_id: str, worker: dict[str, Any] | None = None
) -> ReportFacts:
    """Returns what a report may be made of: the plan, the reservation, released values.

    Args:
        built: The job and its plan.
        ledger: Holds the reservation and the released values.
        run_id: The run.
        worker: Rank 0's own account. Of it only two things are taken: the last clip
            norms, which are made of noisy releases, and exact counts of the
            non-private baseline by step, on public data only.
    """
    plan, job = built.plan, built.job
    worker = worker or {}
    baseline = worker.get("baseline") or {}
    clip_norms = worker.get("clip_norms") or {}
    reservation = ledger.reservation_position(run_id)
    return ReportFacts(
        run_id=run_id,
        job_name=job.name,
        plan=plan,
        epsilon_by_accountant=by_accountant(built),
        blocks=_block_lines(built, ledger),
        training_block=built.training_block,
        looks=_looks(built, ledger, run_id, baseline),
        workers=job.cluster.workers,
        public=ledger.dataset(job.data.registration).public,
        reservation_sequence=reservation.sequence,
        reservation_root=reservation.root,
        model=job.model.path,
        registration=job.data.registration,
        curve=tuple(curve_of(built)),
        user_column=job.data.user if plan.unit == "user" else None,
        last_clip_norms=tuple(clip_norms.get("now", ())),
        num_colluding=job.privacy.owners.colluding if job.privacy.owners else 1,
    )


def _block_lines(built: BuiltJob, ledger: Ledger) -> tuple[BlockLine, ...]:
    if built.shares:
        return filter_lines(built, ledger)
    lines = []
    names = {envelope.block for envelope in built.envelopes}
    for envelope in built.envelopes:
        status = ledger.block_status(envelope.block)
        lines.append(
            BlockLine(
                name=envelope.block,
                role=envelope.purpose,
                epsilon=status.epsilon,
                delta=status.delta,
                run_epsilon=envelope.epsilon,
                run_delta=envelope.delta,
                epsilon_reserved=status.reserved_epsilon,
                overlapping=tuple(n for n in status.overlapping if n in names),
                owner=built.block_owners.get(envelope.block),
            )
        )
    return tuple(lines)


def _looks(
    built: BuiltJob, ledger: Ledger, run_id: str, baseline: dict[int, list[int]]
) -> tuple[Look, ...]:
    plan = built.plan
    if plan.evaluation is None:
        return ()
    num_classes = len(built.job.data.labels or ()) or 2
    stored = ledger.released(run_id).values()
    looks = []
    for values in sorted(stored, key=lambda item: int(item["step"])):
        step = int(values["step"])
        utility = evaluation_utility(
            values["counts"], plan.evaluation, num_classes, baseline.get(step)
        )
        phase = plan.phase_at(step - 1)[1].name
        metrics = [measure.to_dict() for measure in utility.values()]
        looks.append(Look(step, phase, metrics))
    return tuple(looks)
