"""Dropout whose mask belongs to a record, not to its place in a batch.

torch draws the masks of a batch from one stream: without one record all records behind
it get other masks, and their gradients change too. Here every record has a stream of
its own, so that for any fixed choice of masks a record moves the clipped sum by its own
contribution alone.

The generators are ordinary ones. Masks hide nothing: the bound on a contribution holds
for every mask, and the seed of a step is drawn without looking at data.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pft_ray.errors import ModelError
from pft_ray.training.clipping.listing import UnsupportedUseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CALLS_SEED = 20_240_101


class RecordDropout(TorchFunctionMode):
    """Replaces ``functional.dropout`` while it is on.

    A mask is a function of the step's seed, the record's own seed and the number of
    the dropout in the forward pass. The last is drawn from torch's default generator,
    which checkpointed layers put back when they run again: they get the same masks.

    Attributes:
        step_seed: Fresh from the operating system for every object; equal for all
            micro-batches of a step, also those that are tried again smaller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step_seed = secrets.token_bytes(8)
        self._seeds: list[int] = []
        self._num_calls = 0

    def start(self, seeds: torch.Tensor) -> None:
        """Starts a forward pass over records with the int64 ``seeds`` (B,)."""
        self._seeds = seeds.tolist()
        self._num_calls = 0
        torch.manual_seed(_CALLS_SEED)

    def check_others(self) -> None:
        """Checks, after a forward pass, that dropout and nothing else was random.

        Raises:
            ModelError: Something drew from torch's default generator, or no value was
                dropped at all.
        """
        if not self._num_calls:
            raise ModelError(
                "The model drops no values while it trains: the rates of its layers "
                "are 0.",
                "Set model.dropout to false and model.lora.dropout to 0.",
            )
        expected = torch.Generator().manual_seed(_CALLS_SEED)
        for _ in range(self._num_calls):
            _number_of_call(expected)
        if not torch.equal(torch.get_rng_state(), expected.get_state()):
            raise ModelError(
                "The model draws random numbers beside its dropout: they would depend "
                "on a record's place in the batch.",
                "Set model.dropout to false and model.lora.dropout to 0.",
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs ``func``, or the dropout of records in place of torch's."""
        run = self._drop if func is functional.dropout else func
        return run(*args, **(kwargs or {}))

    def _drop(
        self,
        input: torch.Tensor,
        p: float = 0.5,
        training: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
        inplace: bool = False,  # noqa: ARG002, FBT001, FBT002 - writes over nothing
    ) -> torch.Tensor:
        if not training or p == 0:
            return input
        if not len(input) or len(input) % len(self._seeds):
            raise UnsupportedUseError(
                f"A dropout meets an activation whose first dimension is {len(input)} "
                f"for {len(self._seeds)} records.",
                "Set model.dropout to false.",
            )
        call = _number_of_call(None)
        self._num_calls += 1
        mask = torch.empty(len(self._seeds), input.numel() // len(self._seeds)).bool()
        generator = torch.Generator()
        for row, seed in zip(mask, self._seeds, strict=True):
            generator.manual_seed(self._mixed(seed, call))
            row.bernoulli_(1 - p, generator=generator)
        kept = input / (1 - p) if p < 1 else input
        return torch.where(mask.view(input.shape), kept, torch.zeros_like(input))

    def _mixed(self, seed: int, call: int) -> int:
        words = seed.to_bytes(8, "little", signed=True) + call.to_bytes(8, "little")
        digest = hashlib.blake2b(words, key=self.step_seed, digest_size=4).digest()
        return int.from_bytes(digest, "little")


def _number_of_call(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (), generator=generator))
