"""How long a step takes, measured on made-up records, so that decisions may use it.

How long a real step takes depends on its batch, and a batch is secret: a decision that
follows real times (another worker, another machine) would be a release that nobody
paid for. What is measured here depends on the machine and on public shapes alone.

A step of one rank of n takes about ``serial_s + parallel_s / n``: every rank makes the
update, while records and noise shares are divided among the ranks. Not counted: the
reduction (the network's), and the sampler (20 ns a unit).

Records whose frozen part is kept are cheaper from their second step on. Steps are
measured that way, with everything kept; what keeping costs, once a record and worker
group, is told apart in ``seconds_to_keep``.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from pft_ray.crypto import new_key
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.memory import peak_bytes, tells_peaks
from pft_ray.training.optimizers import PrivateOptimizer
from pft_ray.training.prefix import with_kept
from pft_ray.training.types import PrivateGrad

if TYPE_CHECKING:
    from collections.abc import Callable

    from pft_ray.accounting.plan import Plan
    from pft_ray.training.batch import TokenBatch
    from pft_ray.training.local import LocalWork
    from pft_ray.training.phase_parts import PhaseParts
    from pft_ray.training.prefix import Level

_REPEATS = 5
_SAMPLE = 4  # different made-up records
_MOST_COORDINATES = 1 << 22  # measured; longer vectors take proportionally longer


@dataclass(frozen=True)
class PhaseProbe:
    """Times of one phase on this machine, all of made-up records.

    Attributes:
        micro_batch: Records that were measured together: the phase's own micro-batch,
            or fewer when a step has fewer, or when those would have taken too long.
        seconds_per_micro_batch: Forward, backward and clipping of that many records,
            with what the phase keeps of records at hand.
        seconds_fixed: What every rank does once a step, whatever its share of the
            records: rounding, normalising, the optimiser.
        seconds_per_share: Drawing and adding one noise share.
        seconds_to_keep: The frozen part of one record: paid once a record, by the
            worker group that first meets it. 0 when nothing is kept.
        num_parameters: P, the length of the phase's gradient.
        cache_level: What of the frozen part is kept.
        kept_bytes_per_record: What a worker keeps of each of its records in memory.
        peak_bytes: Largest resident size of this process while a micro-batch ran and
            while one was computed to be kept, without what is kept; None when it was
            not asked for, or the system does not tell.
    """

    micro_batch: int
    seconds_per_micro_batch: float
    seconds_fixed: float
    seconds_per_share: float
    seconds_to_keep: float
    num_parameters: int
    cache_level: Level
    kept_bytes_per_record: int = 0
    peak_bytes: int | None = None

    @property
    def seconds_per_record(self) -> float:
        """Forward, backward and clipping of one record among others."""
        return self.seconds_per_micro_batch / self.micro_batch


def probe_phase(
    work: LocalWork,
    expected_units: float,
    *,
    budget_s: float = 2.0,
    with_memory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> PhaseProbe:
    """Measures the phase that ``work`` has started.

    Args:
        work: A rank's work, in a phase.
        expected_units: Records that a step of this rank is expected to have, public:
            q n over the number of ranks.
        budget_s: About how long the measurement may take. A single record runs
            whatever it takes.
        with_memory: Also measure the peak of memory.
        clock: Seconds that never go back.

    Returns:
        Medians of up to five repeats after a warm-up.

    Raises:
        RuntimeError: No phase was started.

    Guarantee:
        The result is a function of machine, model and public shapes: only
        :class:`PhaseParts` is looked at, which holds no record and no id. Nothing is
        sampled and nothing is charged; the noise that is timed is of a key of its own
        and is thrown away. Weights, optimiser and random states stay as they were.
    """
    parts = work.phase_parts()
    total = torch.zeros(parts.clipper.num_parameters, dtype=torch.float64)
    probe = _Probe(parts, budget_s, clock, total)
    return probe.run(expected_units, with_memory=with_memory)


def expected_records(plan: Plan) -> float:
    """Returns how many records the steps of a plan are expected to have, of all ranks.

    Users who are sampled bring the declared records per user, on average.
    """
    user = plan.user
    if user is None or user.kind == "els":
        return plan.expected_batch_size
    return plan.expected_batch_size * user.num_records / plan.size


def step_time(
    probe: PhaseProbe, expected_records: float, num_shares: int
) -> tuple[float, float]:
    """Returns (serial_s, parallel_s): a step of n ranks takes serial_s + parallel_s/n.

    Args:
        probe: What was measured.
        expected_records: Records a step of all ranks together, public.
        num_shares: V, noise shares of all ranks together; n divides it, or the rank
            with most of them takes a little longer.
    """
    records_s = expected_records / probe.micro_batch * probe.seconds_per_micro_batch
    return probe.seconds_fixed, records_s + num_shares * probe.seconds_per_share


@dataclass(frozen=True)
class _Probe:
    parts: PhaseParts
    budget_s: float
    clock: Callable[[], float]
    total: torch.Tensor

    def run(self, expected_units: float, *, with_memory: bool) -> PhaseProbe:
        wanted = min(self.parts.micro_batch, max(1, round(expected_units)))
        with self.parts.model.training_pass():
            made_up = self._made_up(min(wanted, _SAMPLE))
            kept = self._keep(made_up)
            to_keep_s = 0.0
            if self.parts.cache_level != "none":
                to_keep_s = self._median(lambda: self._keep(made_up)) / len(made_up)
            size = self._affordable(kept, wanted)
            peak = self._peak(kept, size) if with_memory and tells_peaks() else None
            self._pass(kept, size)
            per_micro_batch_s = self._median(lambda: self._pass(kept, size))
        fixed_s, share_s = self._vector_work()
        return PhaseProbe(
            micro_batch=size,
            seconds_per_micro_batch=per_micro_batch_s,
            seconds_fixed=fixed_s,
            seconds_per_share=share_s,
            seconds_to_keep=to_keep_s,
            num_parameters=self.parts.clipper.num_parameters,
            cache_level=self.parts.cache_level,
            kept_bytes_per_record=_kept_bytes(kept),
            peak_bytes=peak,
        )

    def _affordable(self, kept: TokenBatch, wanted: int) -> int:
        """Returns how many records can run as often as needed within the budget."""
        self._pass(kept, 1)  # the first pass of all is no measure
        size, took_s = 1, self._timed(lambda: self._pass(kept, 1))
        while size < wanted and 2 * took_s * (_REPEATS + 1) <= self.budget_s:
            size = larger = min(2 * size, wanted)
            took_s = self._timed(partial(self._pass, kept, larger))
        return size

    def _peak(self, kept: TokenBatch, size: int) -> int:
        """Returns the peak while records are computed, and kept where they are."""

        def work() -> None:
            if self.parts.cache_level != "none":
                self._keep(self._made_up(self.parts.micro_batch))
            self._pass(kept, size)

        return peak_bytes(work)

    def _made_up(self, num_records: int) -> TokenBatch:
        return self.parts.model.made_up(num_records, self.parts.length)

    def _keep(self, batch: TokenBatch) -> TokenBatch:
        parts = self.parts
        return with_kept(parts.model, batch, parts.cache_level, parts.cache_depth)

    def _pass(self, kept: TokenBatch, num_records: int) -> None:
        """Does with made-up records what a step does with a micro-batch.

        The records are those of ``kept``, over and over, copied as a step copies them.
        """
        batch = kept.take(torch.arange(num_records) % len(kept))
        clipped, _ = self.parts.clipper.clipped_sum(
            lambda: self.parts.model.training_losses(batch), num_records, 1.0
        )
        self.total.add_(clipped)

    def _timed(self, run: Callable[[], object]) -> float:
        start = self.clock()
        run()
        return self.clock() - start

    def _median(self, run: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < _REPEATS and sum(times) <= self.budget_s:
            times.append(self._timed(run))
        return statistics.median(times)

    def _vector_work(self) -> tuple[float, float]:
        """Returns seconds of the update and of one noise share.

        Both work on stand-ins of at most 4 million coordinates, scaled up to P: no
        second copy of a large model is made, and the real one is not touched.
        """
        named = self._stand_ins()
        size = sum(parameter.numel() for _, parameter in named)
        scale = self.parts.clipper.num_parameters / size
        optimizer = PrivateOptimizer(named, self.parts.optimizer)
        total = torch.zeros(size, dtype=torch.float64)

        def update() -> None:
            optimizer.apply(PrivateGrad(total.float() / 2.0))

        def draw() -> None:
            start = 0
            for piece in _NOISE.share(new_key(), size, 1.0, 1):
                total[start : start + len(piece)] += torch.from_numpy(piece)
                start += len(piece)

        times = []
        for run in (update, draw):
            run()
            times.append(scale * self._median(run))
        return times[0], times[1]

    def _stand_ins(self) -> list[tuple[str, nn.Parameter]]:
        """Returns parameters of zeros, as many and as long as the trained ones."""
        found, left = [], _MOST_COORDINATES
        for name, parameter in self.parts.model.named_parts(self.parts.trainable):
            size = min(parameter.numel(), left)
            if size:
                values = torch.zeros(size, dtype=parameter.dtype)
                found.append((name, nn.Parameter(values)))
            left -= size
        return found


_NOISE = SampledGaussian(sample_rate=1.0, noise_multiplier=1.0, num_shares=1)


def _kept_bytes(batch: TokenBatch) -> int:
    """Returns the bytes that are kept of each record."""
    kept = [values for values in (batch.hidden, batch.features) if values is not None]
    return sum(values[0].numel() * values.element_size() for values in kept)
