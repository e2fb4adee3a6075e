"""The clip norm of each phase as it is now, and the votes that move it.

A unit's vote says whether its norm lies within C: 1 or -1, and a straight line from
one to the other where the norm is near C. A vote that jumped would turn a difference in
the last bit of a norm, which batch-mates may cause, into a whole vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pft_ray.errors import ResumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.accounting.plan import Phase

RAMP = 2.0**-5
"""A vote falls from 1 to -1 between norms of (1 - RAMP) C and (1 + RAMP) C."""

_NOW = "clip_norms/now"
_USED = "clip_norms/used"


def balance_of(norms: torch.Tensor, clip_norm: float) -> float:
    """Returns the sum of the votes of units with these norms.

    Args:
        norms: (U,) fp64 norms before clipping; NaN for a faulty unit, which has no
            vote.
        clip_norm: C.

    Guarantee:
        Adding or removing one unit changes the balance by at most 1, whatever its
        norm is.
    """
    votes = ((1 - norms / clip_norm) / RAMP).clamp(-1.0, 1.0)
    return float(votes.nan_to_num(nan=0.0).sum())


class ClipNorms:
    """C of every phase: the plan's at first, then moved by released fractions only.

    Args:
        phases: The plan's phases.

    Attributes:
        now: C of the next step, by phase.
        used: C of every step that the parameters have, in order. Functions of noisy
            releases and the plan, so they may be shown.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = tuple(phases)
        self.now = [phase.clip_norm for phase in phases]
        self.used: list[float] = []

    @property
    def is_adaptive(self) -> bool:
        """Whether any phase moves its C."""
        return any(phase.quantile is not None for phase in self._phases)

    def made(self, index: int, fraction: float | None) -> None:
        """Notes that a step of phase ``index`` was made, and moves its C.

        Args:
            index: The phase.
            fraction: The step's noisy share of units within C; None when the phase
                has none.
        """
        self.used.append(self.now[index])
        quantile = self._phases[index].quantile
        if quantile is not None and fraction is not None:
            self.now[index] = quantile.next_clip_norm(self.now[index], fraction)

    def to_dict(self) -> dict[str, Any] | None:
        """Returns what may be shown: C by phase now, and of every step made."""
        if not self.is_adaptive:
            return None
        return {"now": list(self.now), "used": list(self.used)}

    def state(self) -> dict[str, torch.Tensor]:
        """Returns what a checkpoint keeps; nothing when no phase moves its C."""
        if not self.is_adaptive:
            return {}
        return {
            _NOW: torch.tensor(self.now, dtype=torch.float64),
            _USED: torch.tensor(self.used, dtype=torch.float64),
        }

    def load_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Puts back what :meth:`state` gave after ``step`` steps.

        Raises:
            ResumeError: The state is missing, of another plan or of another step.
        """
        if not self.is_adaptive:
            return
        now, used = (
            tensors.get(name, torch.zeros(0)).tolist() for name in (_NOW, _USED)
        )
        if len(now) != len(self._phases) or len(used) != step or not self._fits(now):
            raise ResumeError(
                "The checkpoint lacks the clip norms of its steps, or has others than "
                "its plan allows.",
                "Remove that folder; the run resumes from the checkpoint before it.",
            )
        self.now, self.used = now, used

    def _fits(self, now: list[float]) -> bool:
        """A C that does not move is the plan's; one that does is within its limits."""
        for phase, value in zip(self._phases, now, strict=True):
            limits = phase.quantile
            low = limits.clip_norm_min if limits else phase.clip_norm
            high = limits.clip_norm_max if limits else phase.clip_norm
            if not low <= value <= high:
                return False
        return True
