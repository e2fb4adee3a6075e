"""Runs a computation over records so that no record can stop it or drop another.

A fault of one record must not be visible: the record alone is skipped. A fault of the
machine must not look like one of a record: it is told apart by a made-up record of the
same shape, which depends on no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from pft_ray.errors import PftError
from pft_ray.training.clipping.listing import UnsupportedUseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

Result = TypeVar("Result")

_MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether ``error`` says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in text for w in _MEMORY_WORDS)


def run_totally(
    rows: NDArray[np.int64],
    compute: Callable[[NDArray[np.int64]], Result],
    probe: Callable[[], object],
) -> Iterator[tuple[NDArray[np.int64], Result | None]]:
    """Yields (rows, result) until every row was computed; None for a faulty row.

    Out of memory halves the rows; any other error of several rows makes them run one
    by one. An error of a single row is the row's own if ``probe`` succeeds.

    Args:
        rows: Records, computed together when nothing goes wrong.
        compute: Computes some of the records; must not keep partial results.
        probe: Computes a made-up record of the same shape.

    Raises:
        PftError: Raised by ``compute``: about the model, not about a record.
        Exception: What ``probe`` raised: the machine or the model is at fault.
    """
    pending = [rows]
    while pending:
        part = pending.pop()
        try:
            result = compute(part)
        except Exception as error:
            # A use of a parameter that made-up records do not show is a record's own.
            if isinstance(error, PftError) and not isinstance(
                error, UnsupportedUseError
            ):
                raise
            if len(part) == 1:
                probe()
                yield part, None
                continue
            size = len(part) // 2 if is_out_of_memory(error) else 1
            pieces = [part[i : i + size] for i in range(0, len(part), size)]
            pending.extend(reversed(pieces))
            continue
        yield part, result
