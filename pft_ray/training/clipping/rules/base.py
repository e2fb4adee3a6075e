"""What a rule is: one way to run a module and to record what clipping needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from pft_ray.training.clipping.contributions import Contribution


class Sink(Protocol):
    """Receives contributions during the backward pass."""

    def wants(self, parameter: torch.Tensor | None) -> bool:
        """Returns whether ``parameter`` is trained."""

    def add(self, parameter: torch.Tensor, contribution: Contribution) -> None:
        """Takes one use of a trained ``parameter``."""


class ModuleRule(Protocol):
    """How to train one kind of module.

    A rule runs the module's forward through a ``torch.autograd.Function`` whose
    backward returns the input gradient, hands a contribution to the sink for every
    trained parameter, and returns None for the parameter itself.
    """

    def accepts(self, module: nn.Module) -> bool:
        """Returns whether the rule computes exactly what ``module`` computes."""

    def bind(self, module: nn.Module, sink: Sink) -> Callable[..., Any]:
        """Returns the forward to install on ``module``."""


def runs_forward_of(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Returns whether ``module`` has the very forward of one of ``kinds``.

    A subclass that overrides forward computes something else.
    """
    return any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in kinds
    )


def positions_first(tensor: torch.Tensor, num_last: int = 1) -> torch.Tensor:
    """Returns ``tensor`` (B, ..., *last) as (B, T, *last), T the product between."""
    last = tensor.shape[tensor.ndim - num_last :]
    return tensor.reshape(tensor.shape[0], -1, *last)


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Runs an autograd function (torch leaves ``apply`` without types)."""
    return function.apply(*args)  # type: ignore[no-untyped-call]
