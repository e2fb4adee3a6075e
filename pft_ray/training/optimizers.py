"""Optimisers on private gradients, with schedules that depend on step counts alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pft_ray.errors import ConfigError, ResumeError
from pft_ray.training.types import PrivateGrad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


@dataclass(frozen=True)
class OptimizerSpec:
    """How a phase turns private gradients into updates.

    Attributes:
        name: ``adamw`` (decoupled weight decay, Loshchilov and Hutter 2019) or ``sgd``.
        learning_rate: Peak rate.
        num_steps: Steps of the phase, for the schedule.
        head_learning_rate: Peak rate of a classifier's head; None for the same.
        weight_decay: Rate of weight decay.
        warmup_steps: Steps over which the rate rises to its peak.
        decay: ``constant``, or ``linear`` or ``cosine`` to zero after the last step.
    """

    name: Literal["adamw", "sgd"]
    learning_rate: float
    num_steps: int
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.head_learning_rate or 1.0)
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ConfigError(
                f"Learning rates {self.learning_rate!r}, {self.head_learning_rate!r}.",
                "Give finite rates above 0.",
            )
        if self.num_steps < 1 or not 0 <= self.warmup_steps <= self.num_steps:
            raise ConfigError(
                f"{self.warmup_steps} warm-up steps of {self.num_steps} steps.",
                "Give at least one step and a warm-up no longer than the phase.",
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(
                f"weight_decay is {self.weight_decay!r}.", "Give a number >= 0."
            )


def schedule_factor(spec: OptimizerSpec, step: int) -> float:
    """Returns what the peak rate is multiplied by at ``step``, counted from 0."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    last = max(spec.num_steps - 1, spec.warmup_steps)
    done = min(step, last) - spec.warmup_steps
    share = done / max(1, spec.num_steps - spec.warmup_steps)
    if spec.decay == "linear":
        return 1.0 - share
    if spec.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    return 1.0


class PrivateOptimizer:
    """Applies flat private gradients to named parameters.

    Args:
        named_parameters: In the order of the flat vector.
        spec: The phase's optimiser.
    """

    def __init__(
        self,
        named_parameters: Sequence[tuple[str, nn.Parameter]],
        spec: OptimizerSpec,
    ) -> None:
        self.spec = spec
        self.num_applied = 0
        self._named = list(named_parameters)
        head_rate = spec.head_learning_rate or spec.learning_rate
        self._groups = [
            {
                "params": [parameter],
                "peak": head_rate if name.startswith("head.") else spec.learning_rate,
            }
            for name, parameter in self._named
        ]
        kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.SGD
        self._inner = kind(
            self._groups,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=True,
        )

    def apply(self, grad: PrivateGrad) -> None:
        """Makes one optimiser step.

        Raises:
            TypeError: ``grad`` is not a private gradient; nothing else may get here.
            ValueError: Its length is not the number of parameters.
        """
        if type(grad) is not PrivateGrad:
            msg = f"the optimiser takes a PrivateGrad, not {type(grad).__name__}"
            raise TypeError(msg)
        vector = grad.vector.detach()
        sizes = [parameter.numel() for _, parameter in self._named]
        if vector.shape != (sum(sizes),):
            msg = f"gradient of shape {tuple(vector.shape)} for {sum(sizes)} parameters"
            raise ValueError(msg)
        for (_, parameter), part in zip(
            self._named, torch.split(vector, sizes), strict=True
        ):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        factor = schedule_factor(self.spec, self.num_applied)
        for group in self._inner.param_groups:
            group["lr"] = group["peak"] * factor
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)
        self.num_applied += 1

    def state(self) -> dict[str, torch.Tensor]:
        """Returns copies of the moments as ``{parameter}/{moment}``."""
        return {
            f"{name}/{key}": value.detach().clone()
            for name, parameter in self._named
            for key, value in sorted(self._inner.state[parameter].items())
        }

    def load_state(self, tensors: dict[str, torch.Tensor], num_applied: int) -> None:
        """Puts back what :meth:`state` gave after ``num_applied`` steps.

        Raises:
            ResumeError: The moments are of other parameters or another optimiser.
        """
        keys = ("exp_avg", "exp_avg_sq", "step") if self.spec.name == "adamw" else ()
        expected = {f"{name}/{key}" for name, _ in self._named for key in keys}
        if set(tensors) != (expected if num_applied else set()):
            raise ResumeError(
                "The checkpoint's optimiser state is of another trainable set or "
                "optimiser.",
                "Resume with the job file it was made with.",
            )
        self._inner.state.clear()
        for name, parameter in self._named:
            for key in keys if num_applied else ():
                value = tensors[f"{name}/{key}"]
                if key != "step" and value.shape != parameter.shape:
                    raise ResumeError(f"The checkpoint's {key} of {name} misfits.")
                self._inner.state[parameter][key] = value.detach().clone()
        self.num_applied = num_applied
