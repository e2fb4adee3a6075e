"""Keeps what the frozen lower layers of a model make of every record.

The layers below the lowest adapter give the same output in every step, so each record
passes them once. A phase that trains the head alone goes further and keeps the pooled
features, made from the kept hidden states. Kept values are raw data: they live in
memory only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pft_ray.training.batch import TokenBatch, batch_of, synthetic_batch
from pft_ray.training.classifier import TextClassifier
from pft_ray.training.families import num_layers, run_prefix
from pft_ray.training.totality import run_totally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.data.tokens import TokenTable
    from pft_ray.training.models import TrainedModel

Level = Literal["none", "hidden", "features"]


class PrefixCache:
    """Batches of one table, with the frozen part of the model already done.

    Records are computed in fixed blocks of ``chunk_rows`` neighbours, when one of
    them is first asked for, so what is kept does not depend on the order of use.

    Args:
        model: The model; its base weights must not change while this is used.
        table: The records.
        chunk_rows: Records that are computed together.
    """

    def __init__(
        self, model: TrainedModel, table: TokenTable, *, chunk_rows: int
    ) -> None:
        self._model = model
        self._table = table
        self._chunk_rows = chunk_rows
        self._depth = model.frozen_depth() or 0
        self._level: Level = "none"
        self._hidden = _Store(len(table))
        self._features = _Store(len(table))

    @property
    def level(self) -> Level:
        """What is kept in this phase."""
        return self._level

    @property
    def depth(self) -> int:
        """How many layers lie below what is kept at the level ``hidden``."""
        return self._depth

    def start_phase(self, trainable: str) -> None:
        """Chooses what to keep; features of an earlier phase are dropped."""
        self.drop_features()
        if self._model.is_full:  # the base weights move, or have moved
            self._hidden, self._depth = _Store(len(self._table)), 0
        spec = self._model.spec
        whole = isinstance(self._model.module, TextClassifier) and trainable == "head"
        if whole and not spec.has_dropout:
            self._level = "features"
        else:  # adapters with dropout lie above what is kept
            kept = self._depth > 0 and not spec.dropout
            self._level = "hidden" if kept else "none"

    def drop_features(self) -> None:
        """Forgets pooled features: the adapters under them have changed."""
        self._features = _Store(len(self._table))

    def batch(self, rows: NDArray[np.int64]) -> TokenBatch:
        """Returns the records at ``rows`` with what is kept of them."""
        batch = batch_of(self._table, rows)
        if self._level == "features":
            self._fill(rows, self._features, self._compute_features)
            return replace(batch, features=self._features.take(rows))
        if self._level == "hidden":
            return self._with_hidden(batch, rows)
        return batch

    def _with_hidden(self, batch: TokenBatch, rows: NDArray[np.int64]) -> TokenBatch:
        self._fill(rows, self._hidden, self._compute_hidden)
        return replace(batch, hidden=self._hidden.take(rows), depth=self._depth)

    def _compute_hidden(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return self._prefix_of(batch_of(self._table, rows))

    def _compute_features(self, rows: NDArray[np.int64]) -> torch.Tensor:
        batch = batch_of(self._table, rows)
        if self._keeps_hidden:
            batch = self._with_hidden(batch, rows)
        return self._features_of(batch)

    @property
    def _keeps_hidden(self) -> bool:
        """Whether a phase that trains adapters will want the hidden states."""
        family = self._model.family
        if family is None or self._depth == 0:
            return False
        return self._depth < num_layers(self._model.stack, family)

    def _prefix_of(self, batch: TokenBatch) -> torch.Tensor:
        return _hidden_of(self._model, batch, self._depth)

    def _features_of(self, batch: TokenBatch) -> torch.Tensor:
        return _features_of(self._model, batch)

    def _probe(self) -> None:
        """Runs a made-up record through the whole backbone."""
        length = self._table.max_length
        batch = synthetic_batch(1, length, self._model.vocab_size, causal=False)
        if self._level == "features":
            self._features_of(batch)
        else:
            self._prefix_of(batch)

    def _fill(self, rows: NDArray[np.int64], store: _Store, compute: _Compute) -> None:
        """Computes the blocks that hold ``rows`` and are not there yet."""
        wanted = rows[~store.known[rows]]
        for block in np.unique(wanted // self._chunk_rows):
            start = int(block) * self._chunk_rows
            stop = min(start + self._chunk_rows, len(self._table))
            members = np.arange(start, stop, dtype=np.int64)
            usable = members[self._table.lengths[members] > 0]
            for part, values in run_totally(usable, compute, self._probe):
                store.put(part, values)
            store.known[members] = True


def with_kept(
    model: TrainedModel, batch: TokenBatch, level: Level, depth: int
) -> TokenBatch:
    """Returns made-up records with what a cache would keep of them; for probes.

    Args:
        model: The model.
        batch: Records that are nobody's; nothing of them is kept here.
        level: What is kept in the phase.
        depth: Layers below it, for the level ``hidden``.
    """
    if level == "features":
        return replace(batch, features=_widened(_features_of(model, batch)))
    if level == "hidden":
        hidden = _widened(_hidden_of(model, batch, depth))
        return replace(batch, hidden=hidden, depth=depth)
    return batch


def _hidden_of(model: TrainedModel, batch: TokenBatch, depth: int) -> torch.Tensor:
    assert model.family is not None
    return run_prefix(model.stack, model.family, batch, depth)


def _features_of(model: TrainedModel, batch: TokenBatch) -> torch.Tensor:
    assert isinstance(model.module, TextClassifier)
    with torch.no_grad():
        return model.module.features(batch)


def _widened(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Store:
    """Rows of values in fp32 (or wider), NaN for a row that could not be computed."""

    def __init__(self, num_rows: int) -> None:
        self.known = np.zeros(num_rows, dtype=np.bool_)
        self._faulty: list[int] = []
        self._values: torch.Tensor | None = None

    def put(self, rows: NDArray[np.int64], values: torch.Tensor | None) -> None:
        """Keeps the values of ``rows``; None marks them faulty."""
        if values is None:
            self._faulty.extend(rows.tolist())
            if self._values is not None:
                self._values[torch.from_numpy(rows)] = torch.nan
            return
        if self._values is None:
            dtype = torch.promote_types(values.dtype, torch.float32)
            self._values = torch.empty(len(self.known), *values.shape[1:], dtype=dtype)
            self._values[torch.tensor(self._faulty, dtype=torch.long)] = torch.nan
        self._values[torch.from_numpy(rows)] = values.to(self._values.dtype)

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Returns the values of ``rows``.

        Raises:
            ValueError: No row could be computed, so the shape is not known.
        """
        if self._values is None:
            msg = "no record of the block could be computed"
            raise ValueError(msg)
        return self._values[torch.from_numpy(rows)]


if TYPE_CHECKING:
    from collections.abc import Callable

    _Compute = Callable[[NDArray[np.int64]], torch.Tensor]
