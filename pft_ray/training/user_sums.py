"""Sums of contributions when a unit is a user with several records.

A user's records lie in one micro-batch, and their mean or sum is clipped once. A user
whose records cannot be computed together is done record by record: a faulty record is
left out alone, and what remains of the user is clipped as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pft_ray.errors import InputError
from pft_ray.training.clipping import OneUnitClipper
from pft_ray.training.clipping.factors import clip_factors
from pft_ray.training.totality import run_totally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pft_ray.data.users import UserGroups
    from pft_ray.training.batch import TokenBatch
    from pft_ray.training.clipping import PerRecordClipper

    Clipper = PerRecordClipper | OneUnitClipper


@dataclass
class UserSums:
    """Computes the contributions of whole users.

    Attributes:
        groups: Which rows belong to which user.
        lengths: int32 (n,), tokens of every row; 0 marks a faulty one.
        mean: Whether the mean of a user's gradients is clipped, else their sum.
        max_micro_batch: Records that run through the model together at most.
        batch: Gives the records of rows.
        losses: Gives the losses of records, one each.
        probe: Computes a made-up record of the same shape.
        faulty: Rows that were left out; for the operator only.

    Raises:
        InputError: A user has more records than run through the model together.
    """

    groups: UserGroups
    lengths: NDArray[np.int32]
    mean: bool
    max_micro_batch: int
    batch: Callable[[NDArray[np.int64]], TokenBatch]
    losses: Callable[[TokenBatch], torch.Tensor]
    probe: Callable[[], object]
    faulty: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        sizes = np.diff(self.groups.starts)
        if len(sizes) and sizes.max() > self.max_micro_batch:
            raise InputError(
                f"A user has more records than max_micro_batch {self.max_micro_batch}.",
                "Raise max_micro_batch, or lower max_records_per_user.",
            )

    def sum(
        self,
        users: NDArray[np.int64],
        clipper: Clipper,
        clip_norm: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sum of the users' contributions, (P,) fp64, and their norms.

        Norms before clipping, of users with a usable record; NaN where none is finite.

        Args:
            users: Distinct numbers of users.
            clipper: Of this phase.
            clip_norm: C; None: not clipped, for baselines only.

        Guarantee:
            Leaving one user out changes the sum by at most C in L2 norm, whatever its
            records do; a record that is faulty disturbs no other, of its own user
            neither.
        """
        total = torch.zeros(clipper.num_parameters, dtype=torch.float64)
        norms = [torch.zeros(0, dtype=torch.float64)]
        together = partial(self._together, clipper=clipper, clip_norm=clip_norm)
        most = 1 if isinstance(clipper, OneUnitClipper) else self.max_micro_batch
        for chunk in self._chunks(users, most):
            for part, result in run_totally(chunk, together, self.probe):
                if result is None:
                    result = self._one_by_one(int(part[0]), clipper, clip_norm)
                total += result[0]
                norms.append(result[1])
        return total, torch.cat(norms)

    def _usable(self, user: int) -> NDArray[np.int64]:
        rows = self.groups.rows(user)
        return rows[self.lengths[rows] > 0]

    def _scale(self, user: int) -> float:
        rows = self.groups.rows(user)
        return 1.0 / len(rows) if self.mean else 1.0

    def _chunks(
        self, users: NDArray[np.int64], most: int
    ) -> Iterator[NDArray[np.int64]]:
        """Yields users with ``most`` records together; one alone may have more."""
        chunk: list[int] = []
        size = 0
        for user in users.tolist():
            rows = self.groups.rows(user)
            usable = self._usable(user)
            self.faulty.update(np.setdiff1d(rows, usable).tolist())
            if not len(usable):
                continue
            if chunk and size + len(usable) > most:
                yield np.asarray(chunk, dtype=np.int64)
                chunk, size = [], 0
            chunk.append(user)
            size += len(usable)
        if chunk:
            yield np.asarray(chunk, dtype=np.int64)

    def _together(
        self,
        users: NDArray[np.int64],
        *,
        clipper: Clipper,
        clip_norm: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._usable(user) for user in users.tolist()]
        sizes = [len(part) for part in parts]
        rows = np.concatenate(parts)
        scales = np.repeat([self._scale(user) for user in users.tolist()], sizes)
        batch = self.batch(rows)

        def losses() -> torch.Tensor:
            values = self.losses(batch)
            return values * torch.from_numpy(scales).to(values.dtype)

        segments = torch.from_numpy(np.repeat(np.arange(len(users)), sizes))
        if clip_norm is None:
            return clipper.plain_sum(losses, len(rows), segments=segments)
        result, norms = clipper.clipped_sum(
            losses, len(rows), clip_norm, segments=segments
        )
        lost = torch.isnan(norms)[segments].numpy()
        self.faulty.update(rows[lost].tolist())
        return result, norms

    def _one_by_one(
        self, user: int, clipper: Clipper, clip_norm: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds up what can be computed of one user, then clips."""
        total = torch.zeros(clipper.num_parameters, dtype=torch.float64)
        num_added = 0
        scale = self._scale(user)

        def alone(row: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            batch = self.batch(row)
            return clipper.plain_sum(lambda: self.losses(batch) * scale, 1)

        for row in self._usable(user):
            for part, result in run_totally(np.array([row]), alone, self.probe):
                if result is None or bool(torch.isnan(result[1]).any()):
                    self.faulty.update(part.tolist())
                else:
                    total += result[0]
                    num_added += 1
        norm = torch.linalg.vector_norm(total)[None]
        if num_added == 0 or not bool(torch.isfinite(norm)):
            return torch.zeros_like(total), torch.full_like(norm, torch.nan)
        if clip_norm is None:
            return total, norm
        return total * clip_factors(norm, clip_norm, len(total)), norm
