"""Tensors made of trained parameters alone: casts, transposes, ``1 + w``, and more.

The gradient of a record with respect to such a tensor is carried back to the
parameters: for casts, shifts and transposes by what they are, else by autograd, one
record at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pft_ray.training.clipping.contributions import Direct, Outer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pft_ray.training.clipping.contributions import Contribution

_T = torch.Tensor
_SAME = {_T.to, _T.float, _T.half, _T.bfloat16, _T.double, _T.type_as, _T.contiguous}
_SAME |= {_T.clone, _T.add, _T.__radd__, torch.add, _T.view_as}
_SWAPS = {_T.t, torch.t, _T.T.__get__, _T.mT.__get__}  # type: ignore[attr-defined]
_SWAPS_OF = {_T.transpose, torch.transpose}


@dataclass(frozen=True)
class Derived:
    """How a tensor comes from trained parameters.

    Attributes:
        roots: The parameters.
        how: ``same`` (an equal gradient), ``swapped`` (its transpose) or ``any``.
        tensor: The tensor; None for a parameter itself.
    """

    roots: tuple[torch.Tensor, ...]
    how: str
    tensor: torch.Tensor | None

    @classmethod
    def of_root(cls, parameter: torch.Tensor) -> Derived:
        """Returns what a parameter itself is."""
        return cls((parameter,), "same", None)

    def pull_back(
        self, contribution: Contribution
    ) -> Iterator[tuple[torch.Tensor, Contribution]]:
        """Yields (parameter, contribution) for each root."""
        if self.how == "same":
            yield self.roots[0], contribution
        elif self.how == "swapped" and isinstance(contribution, Outer):
            yield self.roots[0], Outer(contribution.right, contribution.left)
        else:
            yield from self._by_autograd(contribution)

    def _by_autograd(
        self, contribution: Contribution
    ) -> Iterator[tuple[torch.Tensor, Contribution]]:
        assert self.tensor is not None
        made = self.tensor
        if isinstance(contribution, Direct):
            values = contribution.values
        else:
            values = contribution.per_record(slice(None), made.dtype)
        roots = list(self.roots)
        rows: list[list[torch.Tensor]] = [[] for _ in roots]
        for row in values.to(made.dtype):
            grads: Sequence[torch.Tensor | None] = torch.autograd.grad(
                made, roots, row.view_as(made), retain_graph=True, allow_unused=True
            )
            for kept, grad, root in zip(rows, grads, roots, strict=True):
                kept.append(torch.zeros_like(root) if grad is None else grad)
        for root, kept in zip(roots, rows, strict=True):
            yield root, Direct(torch.stack(kept).flatten(1))


def derive(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    known: list[Derived],
    tracked: list[torch.Tensor],
    result: torch.Tensor,
) -> Derived:
    """Returns how ``result = func(*args)`` comes from the roots of ``known``.

    Args:
        func: The torch function.
        args: Its positional arguments.
        known: What is known of each tracked argument.
        tracked: The tracked arguments.
        result: What it gave.
    """
    roots: dict[int, torch.Tensor] = {}
    for made in known:
        roots |= {id(root): root for root in made.roots}
    how = "any"
    if len(known) == 1 and known[0].how != "any":
        step = _step(func, args, tracked[0], result)
        if step == "same":
            how = known[0].how
        elif step == "swapped":
            how = "same" if known[0].how == "swapped" else "swapped"
    return Derived(tuple(roots.values()), how, result)


def _step(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    source: torch.Tensor,
    result: torch.Tensor,
) -> str:
    if func in _SAME and result.shape == source.shape:
        scaled = any(isinstance(a, torch.Tensor) and a is not source for a in args)
        return "any" if scaled else "same"
    if source.ndim == 2 and (
        func in _SWAPS or (func in _SWAPS_OF and sorted(args[1:]) in ([0, 1], [-2, -1]))
    ):
        return "swapped"
    return "any"
