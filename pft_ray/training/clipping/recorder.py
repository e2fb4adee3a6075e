"""Finds what every trained parameter does in a forward pass, and records it.

A ``TorchFunctionMode`` sees each torch function that is called with a trained
parameter, whatever module calls it and however. The few things that parameters do in
language models (multiply, look up, scale, shift, normalise) are run through autograd
functions that hand per-record contributions to a sink; anything else is refused by
the names of the parameter and the function. So a family nobody thought of works or is
refused; there is no list of model classes.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from pft_ray.training.clipping.contributions import Direct
from pft_ray.training.clipping.derived import Derived, derive
from pft_ray.training.clipping.listing import UnsupportedUseError
from pft_ray.training.clipping.uses import FLAT_SAFE, RESHAPES, USES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

    from pft_ray.training.clipping.contributions import Contribution


class Recorder(TorchFunctionMode):
    """Watches one forward and backward pass over B records.

    Args:
        module: The model.
        named_parameters: What is trained.
        num_records: B.
        add: Takes (parameter, contribution) during the backward pass.

    Raises:
        UnsupportedUseError: From the forward pass, at a use that is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        named_parameters: Sequence[tuple[str, nn.Parameter]],
        num_records: int,
        add: Callable[[torch.Tensor, Contribution], None],
    ) -> None:
        super().__init__()
        self.num_records = num_records
        self._add = add
        self._names = {id(p): name for name, p in named_parameters}
        self._derived: dict[int, Derived] = {}
        # Tensors that no record has a part in: parameters, buffers, what is made of
        # them alone. Those made on the way are kept, so that an id stays theirs.
        self._constant = {id(t) for t in (*module.parameters(), *module.buffers())}
        self._kept: dict[int, torch.Tensor] = {}
        self._flat: dict[int, weakref.ref[torch.Tensor]] = {}

    def __exit__(self, *raised: Any) -> None:
        """Stops watching and lets go of the pass, which refers to this recorder.

        Else its activations would stay until the garbage collector finds the cycle.
        """
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._add = _add_nothing
        for table in (self._derived, self._kept, self._flat):
            table.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs ``func``, or its recorded form when it meets a trained parameter."""
        named = kwargs or {}
        tensors = list(_tensors(args)) + list(_tensors(named.values()))
        tracked = [t for t in tensors if self.wants(t)]
        if not tracked:
            result = func(*args, **named)
            self._note_flat(func, tensors, result)
            # Adapters multiply by an identity to see their product.
            if func is torch.eye or self._made_of_kept(tensors):
                self._keep(result)
            return result
        if all(id(t) in self._constant for t in tensors):
            return self._derive(func, args, named, tracked)
        use = USES.get(func)
        result = None if use is None else use(self, *args, **named)
        if result is None:
            raise UnsupportedUseError(
                f"Parameter {self.name_of(tracked[0])!r} is used by "
                f"{getattr(func, '__name__', 'a function')} in a way that has no "
                "batched per-record gradient.",
                "Freeze it, or train LoRA adapters on its Linear layers.",
            )
        for tensor in tensors:
            self.follow(tensor, result)
        return result

    # -- what rules ask for -------------------------------------------------------

    def wants(self, tensor: torch.Tensor | None) -> bool:
        """Returns whether a tensor is a trained parameter or made of one."""
        return id(tensor) in self._names or id(tensor) in self._derived

    def is_constant(self, tensor: torch.Tensor | None) -> bool:
        """Returns whether no record has a part in ``tensor``."""
        return tensor is None or id(tensor) in self._constant

    def name_of(self, tensor: torch.Tensor) -> str:
        """Returns the name of a trained parameter, or of one it was made of."""
        made = self._derived.get(id(tensor))
        return self._names[id(made.roots[0] if made is not None else tensor)]

    def is_flat(self, tensor: torch.Tensor) -> bool:
        """Returns whether the first dimension is known to be records x positions."""
        known = self._flat.get(id(tensor))
        return known is not None and known() is tensor

    def follow(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Notes that ``result`` has the rows of ``source``, in their order."""
        if self.is_flat(source):
            self._flat[id(result)] = weakref.ref(result)

    def by_record(
        self, tensor: torch.Tensor, owner: torch.Tensor, *, num_last: int = 1
    ) -> torch.Tensor:
        """Returns ``tensor`` with records (or records x positions) first.

        What is the same for every record, with a first dimension of 1 or, of lookups,
        with one dimension, is repeated for each: broadcasting gives the same.

        Args:
            tensor: An activation or row numbers.
            owner: The parameter that meets it, for messages.
            num_last: Dimensions that are not positions: 1, and 0 of row numbers.

        Raises:
            UnsupportedUseError: The first dimension is neither.
        """
        shape = tensor.shape
        if self.is_flat(tensor):
            return tensor
        if len(shape) > 1 and shape[0] == self.num_records:
            return tensor
        if len(shape) > 1 and shape[0] == 1:
            return tensor.expand(self.num_records, *shape[1:])
        if num_last == 0 and len(shape) == 1:
            return tensor.expand(self.num_records, *shape)
        raise UnsupportedUseError(
            f"Parameter {self.name_of(owner)!r} meets an activation whose first "
            f"dimension is {shape[0] if shape else 'absent'} for "
            f"{self.num_records} records.",
            "Its input must keep one row for every record; freeze the parameter or "
            "use LoRA on attention layers only.",
        )

    def add(self, parameter: torch.Tensor, contribution: Contribution) -> None:
        """Takes one use of a trained tensor during the backward pass."""
        made = self._derived.get(id(parameter)) or Derived.of_root(parameter)
        for root, mapped in made.pull_back(contribution):
            if isinstance(mapped, Direct):  # of a norm that computes in less
                wider = torch.promote_types(mapped.values.dtype, root.dtype)
                mapped = Direct(mapped.values.to(wider))
            self._add(root, mapped)

    # -- how tensors came about ---------------------------------------------------

    def _derive(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        tracked: list[torch.Tensor],
    ) -> Any:
        """Runs a function of parameters alone and remembers what it gave."""
        result = func(*args, **named)
        if not isinstance(result, torch.Tensor) or id(result) in self._constant:
            return result
        self._keep(result)
        if result.requires_grad:
            known = [self._derived.get(id(t)) or Derived.of_root(t) for t in tracked]
            self._derived[id(result)] = derive(func, args, known, tracked, result)
        return result

    def _made_of_kept(self, tensors: list[torch.Tensor]) -> bool:
        """Returns whether no record has a part in what these give, and we made one."""
        if not self._kept or not any(id(t) in self._kept for t in tensors):
            return False
        return all(id(t) in self._constant for t in tensors)

    def _keep(self, result: Any) -> None:
        if isinstance(result, torch.Tensor) and id(result) not in self._constant:
            self._constant.add(id(result))
            self._kept[id(result)] = result

    def _note_flat(
        self, func: Callable[..., Any], tensors: list[torch.Tensor], result: Any
    ) -> None:
        """Follows activations whose records and positions were made one dimension."""
        if not isinstance(result, torch.Tensor) or not tensors:
            return
        first = tensors[0]
        if func in RESHAPES:
            if _merges_positions(first, result, self.num_records):
                self._flat[id(result)] = weakref.ref(result)
        elif self._flat and func in FLAT_SAFE:
            flat = [t for t in tensors if self.is_flat(t)]
            if flat and result.shape[:1] == flat[0].shape[:1]:
                self.follow(flat[0], result)


def _add_nothing(parameter: torch.Tensor, contribution: Contribution) -> None:
    """Takes nothing: the pass is over."""


def run_backward(total: torch.Tensor) -> None:
    """Runs the backward pass of a scalar, with recorders on.

    ``total.backward()`` is a torch function itself: a mode is off inside it, and would
    not see what checkpointed layers compute again.
    """
    ones = (torch.ones_like(total),)
    _engine_run_backward(
        (total,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def gradients_of(
    total: torch.Tensor, roots: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """Returns the gradients of a scalar, with modes on; None where it has none.

    ``torch.autograd.grad`` is a torch function like ``backward``.
    """
    ones = (torch.ones_like(total),)
    found: Sequence[torch.Tensor | None] = _engine_run_backward(
        (total,), ones, False, False, tuple(roots), True, accumulate_grad=False
    )
    return found


def _merges_positions(before: torch.Tensor, after: torch.Tensor, records: int) -> bool:
    """Returns whether (B, ..., n) became (B * positions, n), in that order."""
    return (
        before.ndim > 2
        and after.ndim == 2
        and before.shape[0] == records
        and before.shape[-1] == after.shape[-1]
    )


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (v for v in value if isinstance(v, torch.Tensor))
