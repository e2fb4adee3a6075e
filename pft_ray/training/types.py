"""The three kinds of gradient, as distinct types: a wrong order cannot be written.

A step turns records into a :class:`ClippedSum`, that into a :class:`NoisyShare`, and
the reduction of all shares into a :class:`PrivateGrad`. Only a noisy share may leave
the process, and only a private gradient may reach the optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClippedSum:
    """A sum of per-record gradients, each of norm at most ``clip_norm``. Private.

    Attributes:
        vector: Flat (num_parameters,) fp64 tensor (fp32 is allowed).
        clip_norm: Bound C on what one record adds to the vector (L2 norm).
        balance: Sum of the units' votes on C, each from -1 (its norm lies beyond C) to
            1 (within); None where nobody counted. Private.
    """

    vector: torch.Tensor
    clip_norm: float
    balance: float | None = None


@dataclass(frozen=True)
class NoisyShare:
    """A clipped sum plus this process's share of the noise; may be reduced.

    Attributes:
        vector: Flat (num_parameters,) fp32 tensor; one coordinate longer when it is
            ``counted``.
        phase: Index of the plan's phase it belongs to.
        clip_norm: C of that step.
        counted: Whether the last coordinate is the noisy balance, times its weight.
    """

    vector: torch.Tensor
    phase: int
    clip_norm: float
    counted: bool = False


@dataclass(frozen=True)
class PrivateGrad:
    """The reduced, normalised sum with the whole noise in it; no balance is in it.

    Attributes:
        vector: Flat (num_parameters,) fp32 tensor.
    """

    vector: torch.Tensor
