"""One process's share of a step: its records, its copy of the model, its optimiser."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pft_ray.errors import InputError, ResumeError
from pft_ray.training.batch import TokenBatch, check_positions
from pft_ray.training.checkpoint import part_of, put_back
from pft_ray.training.clip_norms import balance_of
from pft_ray.training.clipping import OneUnitClipper, choose_clipper
from pft_ray.training.memory import largest_micro_batch
from pft_ray.training.optimizers import OptimizerSpec, PrivateOptimizer
from pft_ray.training.phase_parts import PhaseParts
from pft_ray.training.prefix import Level, PrefixCache
from pft_ray.training.spec import moves_base
from pft_ray.training.totality import run_totally
from pft_ray.training.types import ClippedSum, PrivateGrad
from pft_ray.training.user_sums import UserSums

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pft_ray.accounting.plan import Clipping
    from pft_ray.data.tokens import TokenTable
    from pft_ray.data.users import UserGroups
    from pft_ray.training.clipping import PerRecordClipper
    from pft_ray.training.models import TrainedModel

    _SumAndNorms = tuple[torch.Tensor, torch.Tensor]
    _Run = Callable[[Callable[[], torch.Tensor], int], _SumAndNorms]
    _Clipper = PerRecordClipper | OneUnitClipper

_PARAMETER = "parameter/"
_MOMENT = "optimizer/"
_TRAINABLE = "phase/trainable"
_PROGRESS = "phase/progress"
_EXACT, _ROUGH = 1e-3, 2.0**-4  # of fp32, and of bf16 with its 8 bits


class LocalWork:
    """Per-record gradients of this process's records, and updates of its model.

    Args:
        model: The model; its trainable set is changed by :meth:`start_phase`.
        table: The records that this process is responsible for.
        max_micro_batch: Records that run through the model together at most.
        memory_limit_bytes: Largest resident size of the process; the micro-batch is
            fitted to it by a probe at the start of each phase. None for no probe.
        users: Which rows belong to which user, when users are the units; None: every
            row is a unit.
        mean: Whether the mean of a user's gradients is clipped, else their sum.

    Raises:
        ModelError: The records are longer than the model allows.
    """

    def __init__(
        self,
        model: TrainedModel,
        table: TokenTable,
        *,
        max_micro_batch: int,
        memory_limit_bytes: int | None = None,
        users: UserGroups | None = None,
        mean: bool = True,
    ) -> None:
        if max_micro_batch < 1:
            raise InputError(
                f"max_micro_batch is {max_micro_batch}.", "Give an integer >= 1."
            )
        model.check_length(table.max_length)
        self._model = model
        self._table = table
        self._max_micro_batch = max_micro_batch
        self._memory_limit_bytes = memory_limit_bytes
        self.micro_batch = max_micro_batch
        self._cache = PrefixCache(model, table, chunk_rows=max_micro_batch)
        self._evaluation: tuple[TokenTable, PrefixCache] | None = None
        self._trainable: str | None = None
        self._clipper: _Clipper | None = None
        self.slow_reason = ""
        self._optimizer: PrivateOptimizer | None = None
        self._faulty: set[int] = set()
        self._num_units = len(table if users is None else users)
        self._users: UserSums | None = None
        if users is not None:
            self._users = UserSums(
                groups=users,
                lengths=table.lengths,
                mean=mean,
                max_micro_batch=max_micro_batch,
                batch=self._cache.batch,
                losses=model.training_losses,
                probe=self._probe,
                faulty=self._faulty,
            )
        self._base_moved = False

    @property
    def num_parameters(self) -> int:
        """P, the length of this phase's flat gradient."""
        return self._phase_clipper.num_parameters

    @property
    def num_faulty(self) -> int:
        """Distinct records that contributed zero because of a fault; operator only."""
        return len(self._faulty)

    @property
    def cache_level(self) -> Level:
        """What of the frozen part is kept in this phase: none, hidden or features."""
        return self._cache.level

    def phase_parts(self) -> PhaseParts:
        """Returns what this phase computes with, for probes; no record is in it."""
        return PhaseParts(
            model=self._model,
            clipper=self._phase_clipper,
            optimizer=self._phase_optimizer.spec,
            trainable=str(self._trainable),
            micro_batch=self.micro_batch,
            length=self._table.max_length,
            cache_level=self._cache.level,
            cache_depth=self._cache.depth,
        )

    def start_phase(
        self, trainable: str, optimizer: OptimizerSpec, clipping: Clipping = "flat"
    ) -> None:
        """Fixes what is trained and starts a fresh optimiser.

        Made-up records are tried first, so that a model whose contributions cannot be
        bounded is refused before any data is touched. A model that can be clipped
        only one record at a time is, and ``slow_reason`` says why.

        Args:
            trainable: ``head``, ``adapter``, ``adapter+head`` or ``all``.
            optimizer: The phase's optimiser.
            clipping: How a unit's gradient is bounded.

        Raises:
            ModelError: The model cannot be trained with a bounded contribution.
        """
        named = self._model.set_trainable(trainable)
        with self._model.training_pass():
            self._clipper, self.slow_reason = self._choose_clipper(named, clipping)
            self.micro_batch = self._fit_micro_batch()
        if self._users is not None:
            self._users.max_micro_batch = self.micro_batch
        self._optimizer = PrivateOptimizer(named, optimizer)
        self._trainable = trainable
        self._cache.start_phase(trainable)
        if self._evaluation is not None:
            self._evaluation[1].start_phase(trainable)

    def clipped_sum(self, positions: NDArray[np.int64], clip_norm: float) -> ClippedSum:
        """Returns the sum of the clipped contributions of the units at ``positions``.

        Args:
            positions: Distinct rows of the table, or numbers of users; none gives
                zeros, without running the model.
            clip_norm: C.

        Guarantee:
            Leaving one unit out changes the sum by at most C in L2 norm and the
            balance by at most 1, whatever its records do: raise, exhaust memory, or
            give values that are not finite. Such a record contributes zero and
            disturbs no other. Shapes are those of the table, never of the records
            drawn. (Other records' values may change in their last fp32 bits when they
            fall into another micro-batch.)
        """
        total, norms = self._sum(positions, clip_norm)
        return ClippedSum(total, clip_norm, balance_of(norms, clip_norm))

    def plain_sum(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """Returns the unclipped sum, flat fp64: for non-private baselines only."""
        return self._sum(positions, None)[0]

    def apply(self, grad: PrivateGrad) -> None:
        """Makes one optimiser step with a private gradient."""
        self._phase_optimizer.apply(grad)
        self._base_moved = self._base_moved or moves_base(str(self._trainable))

    def state(self) -> dict[str, torch.Tensor]:
        """Returns copies of everything training changes, for a checkpoint.

        Parameters of all parts, also those that are not trained in this phase, the
        optimiser's moments and the position in the phase. Functions of private
        gradients and public values only.
        """
        tensors = {
            _PARAMETER + name: parameter.detach().clone()
            for name, parameter in self._model.kept_parameters()
        }
        if self._optimizer is None or self._trainable is None:
            return tensors
        moments = self._optimizer.state()
        tensors |= {_MOMENT + name: value for name, value in moments.items()}
        progress = (self._optimizer.num_applied, self._optimizer.spec.num_steps)
        tensors[_PROGRESS] = torch.tensor(progress, dtype=torch.int64)
        name = np.frombuffer(self._trainable.encode(), dtype=np.uint8).copy()
        tensors[_TRAINABLE] = torch.from_numpy(name)
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what :meth:`state` gave; training then goes on bit by bit.

        Call it after :meth:`start_phase`. A state taken in the middle of a phase must
        be of that phase. One taken at a phase's end, or before the first, leaves the
        fresh optimiser as it is.

        Raises:
            ResumeError: The state is of another model, phase or optimiser.
        """
        self._load_parameters(tensors)
        self._cache.drop_features()
        if self._evaluation is not None:
            self._evaluation[1].drop_features()
        if _PROGRESS not in tensors:
            return
        applied, num_steps = (int(number) for number in tensors[_PROGRESS])
        if applied >= num_steps:
            return
        trainable = bytes(tensors[_TRAINABLE].tolist()).decode()
        if trainable != self._trainable:
            raise ResumeError(
                f"The checkpoint was made while {trainable!r} was trained, not "
                f"{self._trainable!r}.",
                "Start its own phase before loading it.",
            )
        self._phase_optimizer.load_state(part_of(tensors, _MOMENT), applied)

    def evaluate_probabilities(self, table: TokenTable) -> NDArray[np.float32]:
        """Returns float32 (n, num_labels) class probabilities of a table's records.

        A faulty record gets the uniform distribution; nothing is raised for it.
        """
        num_labels = self._model.spec.num_labels
        default = torch.full((num_labels,), 1.0 / max(1, num_labels))
        return self._evaluate(table, self._model.probabilities, default)

    def evaluate_losses(self, table: TokenTable) -> NDArray[np.float32]:
        """Returns the float32 (n,) losses of a table's records.

        A faulty record gets the loss of a uniform prediction; nothing is raised.
        """
        choices = self._model.spec.num_labels or self._model.vocab_size
        default = torch.tensor(math.log(choices))
        return self._evaluate(table, self._model.losses, default)

    @property
    def _phase_clipper(self) -> _Clipper:
        if self._clipper is None:
            msg = "start_phase must be called first"
            raise RuntimeError(msg)
        return self._clipper

    @property
    def _phase_optimizer(self) -> PrivateOptimizer:
        if self._optimizer is None:
            msg = "start_phase must be called first"
            raise RuntimeError(msg)
        return self._optimizer

    def _sum(
        self, positions: NDArray[np.int64], clip_norm: float | None
    ) -> _SumAndNorms:
        """Returns the sum, clipped unless C is None, and norms before clipping."""
        check_positions(positions, self._num_units)
        rows, clipper = np.asarray(positions, dtype=np.int64), self._phase_clipper
        with self._model.training_pass():
            if self._users is not None:
                return self._users.sum(rows, clipper, clip_norm)
            return self._sum_of_records(rows, clipper, clip_norm)

    def _sum_of_records(
        self, rows: NDArray[np.int64], clipper: _Clipper, clip_norm: float | None
    ) -> _SumAndNorms:
        usable = rows[self._table.lengths[rows] > 0]
        self._faulty.update(np.setdiff1d(rows, usable).tolist())

        def compute(part: NDArray[np.int64]) -> _SumAndNorms:
            batch = self._cache.batch(part)
            losses = partial(self._model.training_losses, batch)
            if clip_norm is None:
                return clipper.plain_sum(losses, len(batch))
            return clipper.clipped_sum(losses, len(batch), clip_norm)

        total = torch.zeros(self.num_parameters, dtype=torch.float64)
        norms = [torch.zeros(0, dtype=torch.float64)]
        size = self.micro_batch
        for start in range(0, len(usable), size):
            chunk = usable[start : start + size]
            for part, result in run_totally(chunk, compute, self._probe):
                if result is None:
                    self._faulty.update(part.tolist())
                    continue
                total += result[0]
                norms.append(result[1])
                self._faulty.update(part[torch.isnan(result[1]).numpy()].tolist())
        return total, torch.cat(norms)

    def _synthetic(self, num_records: int) -> TokenBatch:
        return self._model.made_up(num_records, self._table.max_length)

    def _probe(self, num_records: int = 1) -> None:
        """Runs made-up records as real ones would run."""
        batch = self._synthetic(num_records)
        self._phase_clipper.clipped_sum(
            lambda: self._model.training_losses(batch), num_records, 1.0
        )

    def _fit_micro_batch(self) -> int:
        if isinstance(self._clipper, OneUnitClipper):
            return 1
        if self._memory_limit_bytes is None:
            return self._max_micro_batch
        return largest_micro_batch(
            self._probe, self._max_micro_batch, self._memory_limit_bytes
        )

    def _choose_clipper(
        self, named: list[tuple[str, torch.nn.Parameter]], clipping: Clipping
    ) -> tuple[_Clipper, str]:
        """Tries made-up records, as many as cannot be taken for positions."""
        num_records = 2 if self._table.max_length != 2 else 3
        made_up = self._synthetic(num_records)

        def choose(*, exact: bool) -> tuple[_Clipper, str]:
            return choose_clipper(
                self._model.module,
                named,
                lambda rows: self._model.training_losses(made_up.at(rows), exact=exact),
                num_records,
                clipping,
                tolerance=_EXACT if exact else _ROUGH,
                most_records=self._max_micro_batch,
            )

        self._model.check_randomness(made_up)
        found = choose(exact=True)
        rough = self._model.spec.autocast and not found[1]
        return choose(exact=False) if rough else found

    def _load_parameters(self, tensors: dict[str, torch.Tensor]) -> None:
        stored = part_of(tensors, _PARAMETER)
        own = dict(self._model.kept_parameters())
        spared = {n for n in own if not self._base_moved and self._model.is_base(n)}
        put_back(own, stored, spared)
        self._base_moved = any(self._model.is_base(name) for name in stored)

    def _evaluate(
        self,
        table: TokenTable,
        compute: Callable[[TokenBatch], torch.Tensor],
        default: torch.Tensor,
    ) -> NDArray[np.float32]:
        self._model.check_length(table.max_length)
        cache = self._evaluation_cache(table)
        out = default.repeat(len(table), *([1] * default.ndim)).float()

        def run(part: NDArray[np.int64]) -> torch.Tensor:
            with torch.no_grad():
                return compute(cache.batch(part)).float()

        def probe() -> None:
            with torch.no_grad():
                compute(self._synthetic(1))

        usable = np.flatnonzero(table.lengths > 0).astype(np.int64)
        for start in range(0, len(usable), self._max_micro_batch):
            chunk = usable[start : start + self._max_micro_batch]
            for part, values in run_totally(chunk, run, probe):
                if values is None:
                    continue
                finite = torch.isfinite(values).reshape(len(part), -1).all(1)
                out[torch.from_numpy(part)[finite]] = values[finite]
        result: NDArray[np.float32] = out.numpy()
        return result

    def _evaluation_cache(self, table: TokenTable) -> PrefixCache:
        if self._evaluation is None or self._evaluation[0] is not table:
            cache = PrefixCache(self._model, table, chunk_rows=self._max_micro_batch)
            if self._trainable is not None:
                cache.start_phase(self._trainable)
            self._evaluation = (table, cache)
        return self._evaluation[1]
