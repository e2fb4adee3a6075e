"""Fits the micro-batch into a stated limit, by trying made-up records.

The probe depends on the plan's shapes and on nothing private. Neither the batch nor
what is charged changes: a micro-batch is only how many records run together.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pft_ray.errors import ModelError
from pft_ray.training.totality import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_GIB = 1 << 30


def tells_peaks() -> bool:
    """Returns whether this system tells how much memory a process took at most."""
    return os.access(_CLEAR, os.W_OK) and os.access(_STATUS, os.R_OK)


def peak_bytes(run: Callable[[], object]) -> int:
    """Returns the largest resident size of this process while ``run`` runs, in bytes.

    Raises:
        ModelError: The system does not tell (it is read from Linux' /proc).
    """
    _return_freed_memory()  # what earlier runs left does not count
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        run()
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        raise ModelError(
            "This system does not tell how much memory a process takes.",
            "Leave training.memory_limit_gib out and set training.max_micro_batch.",
        ) from None
    (peak,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])


def largest_micro_batch(
    run: Callable[[int], object], most: int, limit_bytes: int
) -> int:
    """Returns how many records can run together under a limit.

    Tries 1, 2, 4, ... up to ``most``, so the search costs about two passes over the
    largest that fits.

    Args:
        run: Runs forward, backward and clipping over that many made-up records.
        most: Never more than this.
        limit_bytes: Largest resident size of the process.

    Raises:
        ModelError: Not even one record fits.
    """
    fits = 0
    size = 1
    while True:
        needed = _needed(run, size)
        if needed is None or needed > limit_bytes:
            break
        fits = size
        if size == most:
            break
        size = min(2 * size, most)
    _return_freed_memory()
    if fits == 0:
        found = "more than there is" if needed is None else f"{needed / _GIB:.2f} GiB"
        raise ModelError(
            f"One record needs {found}; the limit is {limit_bytes / _GIB:.2f} GiB.",
            "Raise training.memory_limit_gib, lower data.max_length, or set "
            "model.gradient_checkpointing.",
        )
    return fits


def _needed(run: Callable[[int], object], size: int) -> int | None:
    try:
        return peak_bytes(lambda: run(size))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _return_freed_memory() -> None:
    """Gives what is free at this moment back to the system, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    except (AttributeError, OSError, TypeError):
        return
