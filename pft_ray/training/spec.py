"""Which model is trained and how, as frozen public values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pft_ray.errors import ModelError

Task = Literal["classification", "causal_lm"]
Bias = Literal["none", "all", "lora_only"]
Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters (Hu et al. 2021).

    Attributes:
        rank: Inner dimension r.
        alpha: Scale of the adapter is alpha / rank.
        targets: Names of the modules that get an adapter, for example
            ``("query", "value")``.
        layers: Numbers of the layers that get adapters, counted from 0; None for all.
        rslora: Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).
        bias: Biases that are trained with the adapters: ``none``, ``all``, or
            ``lora_only``, those of the modules that have one.
        modules_to_save: Names of modules that are trained whole beside the adapters.
        dropout: Rate at which inputs of the adapters are dropped in training.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    rslora: bool = False
    bias: Bias = "none"
    modules_to_save: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise ModelError(
                f"LoRA of rank {self.rank}, alpha {self.alpha:g} and "
                f"{len(self.targets)} targets.",
                "Give a rank >= 1, an alpha > 0 and at least one target module.",
            )
        if not 0 <= self.dropout < 1:
            raise ModelError(
                f"The dropout of the adapters is {self.dropout:g}.",
                "Give a rate of at least 0 and below 1.",
            )


@dataclass(frozen=True)
class ModelSpec:
    """A base model and what is put on it.

    Attributes:
        path: A folder, ``package:module_name/sub/folder`` inside an installed
            package, or ``hub:org/name@commit`` with a full commit hash.
        task: ``classification`` puts a linear head on pooled hidden states;
            ``causal_lm`` uses the model's own output layer.
        num_labels: Classes of the head; 0 for causal language models.
        pooling: How a record's hidden states become one vector.
        lora: Adapters, or None.
        init_seed: Public seed of the adapters' and the head's initial values.
        gradient_checkpointing: Keep each layer's input only and compute the layer
            again in the backward pass: less memory for about a third more time.
        dropout: Train with the dropout rates of the model's own config.
        autocast: Let torch run forward passes of training in bf16 where it deems that
            safe; weights, sums and evaluation stay in fp32.
    """

    path: str
    task: Task
    num_labels: int = 0
    pooling: Pooling = "mean"
    lora: LoraSpec | None = None
    init_seed: int = 0
    gradient_checkpointing: bool = False
    dropout: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.task == "classification" and self.num_labels < 2:
            raise ModelError(
                f"A classifier with {self.num_labels} labels.",
                "Give at least two labels.",
            )
        if self.task == "causal_lm" and self.num_labels != 0:
            raise ModelError(
                f"A causal language model with {self.num_labels} labels.",
                "Leave the labels out.",
            )
        if not 0 <= self.init_seed < 2**62:
            raise ModelError(
                f"init_seed is {self.init_seed}.", "Give 0 <= seed < 2^62."
            )

    @property
    def has_dropout(self) -> bool:
        """Whether forward passes of training are random."""
        return self.dropout or (self.lora is not None and self.lora.dropout > 0)


def moves_base(trainable: str) -> bool:
    """Returns whether a trainable set has weights of the base model itself."""
    return bool({"all", "biases"} & set(trainable.split("+")))
