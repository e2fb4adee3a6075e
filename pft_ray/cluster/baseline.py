"""The non-private baseline: same recipe, no clipping, no noise; public data only."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pft_ray.crypto import derive_key
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.looks import exact_counts
from pft_ray.training.types import PrivateGrad

if TYPE_CHECKING:
    from pft_ray.cluster.worker import Worker


def run_baseline(worker: Worker) -> dict[int, list[int]]:
    """Trains the same phases without privacy; returns exact counts of each look.

    The registration is public; the ledger keeps a marker row of it, written first.
    Batches are drawn under a public key, never under a run's secret ones.
    """
    plan, work = worker.plan, worker.work
    if worker.rank == 0:
        worker.client.mark_non_private(
            worker.job.data.registration, worker.job.training_block
        )
    mechanism = SampledGaussian.from_plan(plan)
    public_key = hashlib.sha256(b"public baseline " + plan.digest.encode()).digest()
    work.load_state(worker.initial)
    current = -1
    looks = plan.evaluation.looks if plan.evaluation is not None else ()
    counts: dict[int, list[int]] = {}
    for step in range(plan.num_steps):
        index, _ = plan.phase_at(step)
        if index != current:
            worker.enter_phase(index)
            current = index
        key = derive_key(public_key, "baseline", step)
        positions = mechanism.sample(key, worker.inputs.unit_digests)
        total = worker.collective.reduce_public(work.plain_sum(positions))
        work.apply(PrivateGrad(total / plan.expected_batch_size))
        if worker.rank == 0 and step + 1 in looks:
            assert plan.evaluation is not None
            assert worker.inputs.validation is not None
            counts[step + 1] = exact_counts(
                plan.evaluation, work, worker.inputs.validation
            )
    return counts
