"""A model that can be trained: its losses, its trained parts, its released form."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from pft_ray.errors import ModelError
from pft_ray.training.adapters import attach_adapters, write_adapters
from pft_ray.training.batch import TokenBatch, synthetic_batch
from pft_ray.training.classifier import TextClassifier
from pft_ray.training.dropout import RecordDropout
from pft_ray.training.families import entered, family_of, model_inputs, num_layers
from pft_ray.training.loading import checkpoint_layers, load_base
from pft_ray.training.spec import LoraSpec, ModelSpec, moves_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "HEAD_CONFIG",
    "HEAD_WEIGHTS",
    "LoraSpec",
    "ModelSpec",
    "TrainedModel",
    "assemble",
    "load_model",
]

HEAD_CONFIG = "head.json"
HEAD_WEIGHTS = "head.safetensors"

_PARTS = {"head", "adapter", "biases", "all"}


class TrainedModel:
    """A base model with adapters and head, in evaluation mode.

    Nothing is random but the dropout that the specification asks for, and that only
    within :meth:`training_pass`.

    Attributes:
        spec: What it was built from.
        module: A :class:`TextClassifier` or a transformers causal language model.
        stack: The transformers model without its output layer.
        family: What is known about the stack, or None.
    """

    def __init__(self, spec: ModelSpec, module: nn.Module, adapters: Any) -> None:
        self.spec = spec
        self.module = module
        self._adapters = adapters
        self._full = False
        self._masks: RecordDropout | None = None
        if isinstance(module, TextClassifier):
            self._prefix, self.stack = "backbone.", module.backbone
        else:
            self._prefix = f"{module.base_model_prefix}."
            self.stack = module.base_model  # type: ignore[assignment]
        self.family = family_of(self.stack)

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return int(self.stack.config.vocab_size)  # type: ignore[union-attr, arg-type]

    @property
    def max_positions(self) -> int | None:
        """Longest record the model takes, or None when it does not say.

        Models like RoBERTa count positions from behind their padding token.
        """
        value = getattr(self.stack.config, "max_position_embeddings", None)
        taken = 0
        for name, part in self.stack.named_modules():
            if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
                taken = 0 if part.padding_idx is None else part.padding_idx + 1
        return None if value is None else int(value) - taken

    def made_up(self, num_records: int, length: int) -> TokenBatch:
        """Returns records for probes that depend on public shapes alone."""
        causal = self.spec.task == "causal_lm"
        return synthetic_batch(num_records, length, self.vocab_size, causal=causal)

    def check_length(self, max_length: int) -> None:
        """Refuses records that are longer than the model takes.

        Raises:
            ModelError: Says how long they may be.
        """
        limit = self.max_positions
        if limit is not None and max_length > limit:
            raise ModelError(
                f"Records of {max_length} tokens; the model takes {limit}.",
                "Lower max_length.",
            )

    @property
    def is_full(self) -> bool:
        """Whether the base model's own weights have been trained."""
        return self._full

    def named_parts(self, trainable: str) -> list[tuple[str, nn.Parameter]]:
        """Returns the parameters that ``trainable`` means, in the model's fixed order.

        Args:
            trainable: ``head``, ``adapter``, ``biases`` (of the base model), joined by
                ``+``, or ``all``.

        Raises:
            ModelError: The model has no such part.
        """
        parts = set(trainable.split("+"))
        if not parts <= _PARTS or ("all" in parts and len(parts) > 1):
            raise ModelError(
                f"Trainable set {trainable!r} is unknown.",
                "Use head, adapter, adapter+head, biases, biases+head or all.",
            )
        if moves_base(trainable) and self._adapters is not None:
            raise ModelError(
                "The base model is to be trained on a model with adapters.",
                "Leave lora out of the model, or train adapter+head.",
            )
        named = list(self.module.named_parameters())
        chosen = [(n, p) for n, p in named if "all" in parts or parts & self._parts(n)]
        for part in parts - {"all"}:
            if not any(part in self._parts(name) for name, _ in chosen):
                raise ModelError(
                    f"The model has no {part} to train.",
                    "Give the model lora for adapters; only classifiers have a head.",
                )
        return chosen

    def set_trainable(self, trainable: str) -> list[tuple[str, nn.Parameter]]:
        """Freezes everything but ``trainable``; returns it in a fixed order."""
        chosen = self.named_parts(trainable)
        wanted = {id(parameter) for _, parameter in chosen}
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        self._full = self._full or moves_base(trainable)
        return chosen

    def kept_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Returns every parameter that training may have changed so far."""
        named = list(self.module.named_parameters())
        return [(n, p) for n, p in named if self._full or not self.is_base(n)]

    def is_base(self, name: str) -> bool:
        """Returns whether the parameter ``name`` is one of the base model's own."""
        return "base" in self._parts(name)

    def _parts(self, name: str) -> set[str]:
        """Returns what a parameter belongs to; a base model's bias to two."""
        lora = self.spec.lora
        if name.startswith("head."):
            return {"head"}
        if ".lora_" in name or ".modules_to_save." in name:
            return {"adapter"}
        if not name.endswith(".bias"):
            return {"base"}
        kind = "none" if lora is None else lora.bias
        if kind == "all" or (kind == "lora_only" and ".base_layer." in name):
            return {"adapter"}
        return {"base", "biases"}

    def frozen_depth(self) -> int | None:
        """Returns how many layers lie below the lowest adapter.

        Layers below it are the same in every phase that does not train ``all``. None
        when the family cannot be entered above its first layer.
        """
        if self.family is None or self.family.entry is None:
            return None
        depth = num_layers(self.stack, self.family)
        prefix = f"{self._prefix}{self.family.layers}."
        for name, _ in self.module.named_parameters():
            if "adapter" in self._parts(name):
                inside = name.startswith(prefix)
                number = int(name.removeprefix(prefix).split(".")[0]) if inside else 0
                depth = min(depth, number)
        return depth

    @contextmanager
    def training_pass(self) -> Iterator[None]:
        """Makes dropout work, forward and backward, for the time of one clipped sum.

        The masks of a record are the same in all micro-batches of the context; see
        :class:`RecordDropout`. Without dropout nothing is done.
        """
        if not self.spec.has_dropout:
            yield
            return
        still = [part for part in self.module.modules() if not part.training]
        with torch.random.fork_rng(devices=[]), RecordDropout() as self._masks:
            for part in still:
                part.training = True
            try:
                yield
            finally:
                self._masks = None
                for part in still:
                    part.training = False

    def training_losses(
        self, batch: TokenBatch, *, exact: bool = False
    ) -> torch.Tensor:
        """Returns :meth:`losses` with dropout and autocast as specified.

        Call it, and run its backward pass, within :meth:`training_pass`.

        Args:
            batch: The records, with their seeds.
            exact: Leave autocast out.
        """
        if self._masks is not None:
            assert batch.seeds is not None
            self._masks.start(batch.seeds)
        lower = self.spec.autocast and not exact
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            return self.losses(batch)

    def check_randomness(self, batch: TokenBatch) -> None:
        """Refuses a model with other randomness than dropout, in a training pass.

        Raises:
            ModelError: It draws random numbers of its own.
        """
        if self._masks is not None:
            with torch.no_grad():
                self.training_losses(batch)
            self._masks.check_others()

    def losses(self, batch: TokenBatch) -> torch.Tensor:
        """Returns the (B,) losses, each a function of its own record alone.

        Cross entropy of the class, or the mean over the record's own target tokens
        (0 for a record without targets).
        """
        if isinstance(self.module, TextClassifier):
            assert batch.targets is not None
            logits = self.module(batch)
            return nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        assert batch.loss_mask is not None
        logits = self._token_logits(batch)[:, :-1]
        targets = batch.input_ids[:, 1:]
        counted = (batch.loss_mask & batch.attention_mask)[:, 1:]
        nll = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(targets)
        total = torch.where(counted, nll, torch.zeros_like(nll)).sum(1)
        return total / counted.sum(1).clamp(min=1)

    def probabilities(self, batch: TokenBatch) -> torch.Tensor:
        """Returns the (B, num_labels) class probabilities of a classifier."""
        if not isinstance(self.module, TextClassifier):
            raise ModelError(
                "A causal language model has no class probabilities.",
                "Evaluate its losses instead.",
            )
        logits: torch.Tensor = self.module(batch)
        return logits.softmax(dim=-1)

    def _token_logits(self, batch: TokenBatch) -> torch.Tensor:
        dtype = next(self.stack.parameters()).dtype
        inputs = model_inputs(self.family, batch, dtype)
        if self.family is None:
            inputs["use_cache"] = False
            output = self.module(**inputs)
        else:
            with entered(self.stack, self.family, batch):
                output = self.module(**inputs)
        logits: torch.Tensor = output.logits
        return logits

    def save(
        self, folder: Path, labels: Sequence[str] = (), max_length: int | None = None
    ) -> None:
        """Writes the released model into ``folder``.

        Adapters go into peft's plain layout, a whole model into transformers' own; a
        classifier's head lies beside either.

        Args:
            folder: Created when absent.
            labels: Names of the classes, public, in the order of the head's outputs.
            max_length: Tokens a record was cut to in training.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._full:
            self._base_to_save().save_pretrained(folder)  # type: ignore[operator]
        elif self._adapters is not None:
            write_adapters(self._adapters, _public_name(self.spec.path), folder)
        if not isinstance(self.module, TextClassifier):
            return
        head = self.module.head
        tensors = {"weight": head.weight.detach(), "bias": head.bias.detach()}
        save_file(tensors, folder / HEAD_WEIGHTS)
        fields = {
            "labels": list(labels),
            "max_length": max_length,
            "num_labels": self.spec.num_labels,
            "pooling": self.spec.pooling,
        }
        text = json.dumps(fields, indent=2, sort_keys=True)
        (folder / HEAD_CONFIG).write_text(text + "\n", encoding="utf-8")

    def save_merged(self, folder: Path) -> None:
        """Writes the base model with its adapters merged into the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self._base_to_save()
        if self._adapters is not None:
            model = self._adapters.merge_and_unload()
        model.save_pretrained(folder)

    def _base_to_save(self) -> nn.Module:
        return self.stack if isinstance(self.module, TextClassifier) else self.module


def load_model(spec: ModelSpec, *, is_outline: bool = False) -> TrainedModel:
    """Loads the base model and puts fresh adapters and head on it.

    Their initial values depend on ``spec.init_seed`` alone. An outline has the base
    model's names and shapes without its weights, for checks.

    Raises:
        ModelError: The model is missing, damaged, incomplete, or takes no adapters.
    """
    base = load_base(spec, is_outline=is_outline)
    adapters = None
    if spec.lora is not None:
        generator = torch.Generator().manual_seed(2 * spec.init_seed)
        adapters = attach_adapters(base, spec.lora, spec.task, generator)
    return assemble(spec, base, adapters)


def assemble(spec: ModelSpec, base: nn.Module, adapters: Any) -> TrainedModel:
    """Puts a fresh head on a classifier's base; returns the frozen model."""
    module = base
    if spec.task == "classification":
        generator = torch.Generator().manual_seed(2 * spec.init_seed + 1)
        module = TextClassifier(base, spec.num_labels, spec.pooling, generator)
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if spec.gradient_checkpointing:
        checkpoint_layers(base, always=not spec.has_dropout)
    return TrainedModel(spec, module, adapters)


def _public_name(path: str) -> str:
    """Returns a model's reference as it may be released: no folder of this machine."""
    place = Path(path)
    return place.name if place.is_absolute() else path
