"""Low-rank adapters, as a job file declares them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pft_ray.config.base import NonNegative, Positive, Section, Text


class LoraSection(Section):
    """Low-rank adapters and where they go."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Rank r.")
    alpha: Positive = Field(16.0, description="The adapter's scale is alpha / rank.")
    targets: tuple[Text, ...] = Field(
        min_length=1, description="Names of the modules that get an adapter."
    )
    layers: tuple[NonNegative, ...] | None = Field(
        None, min_length=1, description="Layers that get one, from 0; default: all."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="Biases of the base model that are trained too."
    )
    modules_to_save: tuple[Text, ...] = Field(
        (), description="Modules that are trained whole, for example lm_head."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Rate at which inputs of the adapters are dropped."
    )
