"""What all recorded forms share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def positions_second(tensor: torch.Tensor, num_records: int) -> torch.Tensor:
    """Returns (B, ..., n) or (B * positions, n) as (B, T, n)."""
    return tensor.reshape(num_records, -1, tensor.shape[-1])


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Runs an autograd function (torch leaves ``apply`` without types)."""
    return function.apply(*args)  # type: ignore[no-untyped-call]


def unwatched() -> AbstractContextManager[None]:
    """Returns a context in which no mode sees torch functions.

    Backward passes run inside the mode; what they compute is no use of a parameter.
    """
    guard: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return guard
