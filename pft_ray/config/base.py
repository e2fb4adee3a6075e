"""What the sections of a job file are made of: strict models and common kinds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pft_ray.errors import ConfigError

Positive = Annotated[float, Field(gt=2.3e-308, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(gt=2.3e-308, le=1e6, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=2.3e-308, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
NonNegative = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$")]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


def exactly_one(section: str, value: Section, first: str, second: str) -> None:
    """Refuses a section that has both or neither of two keys."""
    given = [name for name in (first, second) if getattr(value, name) is not None]
    if len(given) != 1:
        found = "both of" if given else "neither of"
        raise ConfigError(
            f"{section} has {found} {first} and {second}.", "Give exactly one of them."
        )
