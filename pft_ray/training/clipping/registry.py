"""Which rule trains which module; modules without a rule are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from pft_ray.errors import ModelError
from pft_ray.training.clipping.rules.embedding import EmbeddingRule
from pft_ray.training.clipping.rules.linear import LinearRule
from pft_ray.training.clipping.rules.norm import LayerNormRule, RMSNormRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from pft_ray.training.clipping.rules.base import ModuleRule

RULES: tuple[ModuleRule, ...] = (
    LinearRule(),
    EmbeddingRule(),
    LayerNormRule(),
    RMSNormRule(),
)


def rule_for(module: nn.Module) -> ModuleRule | None:
    """Returns the first rule that computes what ``module`` computes, or None."""
    return next((rule for rule in RULES if rule.accepts(module)), None)


def owners_of(
    module: nn.Module, named_parameters: Sequence[tuple[str, nn.Parameter]]
) -> list[tuple[nn.Module, ModuleRule]]:
    """Returns every module that owns one of the parameters, with its rule.

    Args:
        module: The whole model.
        named_parameters: The parameters to be trained.

    Raises:
        ModelError: A parameter lies in a module without a rule or in no module, a
            trainable parameter is not in the list, or a batch normalisation, which
            mixes records, is anywhere in the model.
    """
    wanted = {id(parameter): name for name, parameter in named_parameters}
    found: set[int] = set()
    owners: list[tuple[nn.Module, ModuleRule]] = []
    for path, owner in module.named_modules():
        if isinstance(owner, _BatchNorm):
            raise ModelError(
                f"Module {path!r} is a {type(owner).__name__}: it mixes the records "
                "of a batch, so no record's contribution can be bounded.",
                "Replace it by GroupNorm or LayerNorm.",
            )
        own = [p for p in owner.parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        _check_listed(path, own, wanted)
        rule = rule_for(owner)
        if rule is None:
            raise ModelError(
                f"Module {path!r} of type {type(owner).__name__} has trainable "
                "parameters, and there is no clipping rule for that type.",
                "Freeze it, or train LoRA adapters on its Linear layers.",
            )
        owners.append((owner, rule))
        found.update(id(parameter) for parameter in own)
    for key, name in wanted.items():
        if key not in found:
            raise ModelError(
                f"Parameter {name!r} is frozen or belongs to no module of the model.",
                "Set requires_grad on it or leave it out.",
            )
    return owners


def _check_listed(
    path: str, own: Sequence[nn.Parameter], wanted: dict[int, str]
) -> None:
    if any(id(parameter) not in wanted for parameter in own):
        raise ModelError(
            f"Module {path!r} has a trainable parameter that is not in the list of "
            "trained parameters.",
            "Freeze it or list it.",
        )
