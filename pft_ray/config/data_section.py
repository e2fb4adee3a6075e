"""The data section of a job file: what is read, what it means, how it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pft_ray.config.base import Count, Name, Section, Text
from pft_ray.data.spec import DataSpec, SplitSpec
from pft_ray.data.windows import WindowSpec


class WindowSection(Section):
    """Records that are used, by a moment of their own: since <= moment < until."""

    field: Text = Field(description="Column of the moment.")
    since: int | str = Field(
        description="First moment inside: a number or an ISO time."
    )
    until: int | str = Field(description="First moment after the window.")


class SplitSection(Section):
    """How a unit is assigned to the training or the validation block."""

    field: Text | None = Field(
        None, description="Column whose value is hashed; the unit's id when absent."
    )
    salt: Text = Field("1", description="Public salt of the hash.")
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="Expected share of units in the validation block."
    )
    window: WindowSection | None = Field(
        None, description="Only records of this time; blocks of others are disjoint."
    )

    def spec(self) -> SplitSpec:
        """Returns the split as the data loader takes it."""
        window = self.window
        return SplitSpec(
            self.field,
            self.salt,
            self.validation_fraction,
            None
            if window is None
            else WindowSpec(window.field, window.since, window.until),
        )


class DataSection(Section):
    """What is read, what its columns mean, and how large it is declared to be."""

    path: Text = Field(description="File or folder, from the job file.")
    registration: Name = Field(description="Name of the registered data set.")
    public: bool = Field(False, description="Fixed when the data set is registered.")
    format: Literal["auto", "parquet", "csv", "jsonl", "dataset"] = Field(
        "auto", description="File format; auto goes by the name."
    )
    text: Text | None = Field(None, description="Column of the text.")
    messages: Text | None = Field(None, description="Column of chat messages.")
    label: Text | None = Field(None, description="Column of the class.")
    labels: tuple[Text, ...] | None = Field(
        None, min_length=2, description="Declared classes."
    )
    id: Text | None = Field(None, description="Column of unique record ids.")
    user: Text | None = Field(None, description="Column that names the user.")
    split: SplitSection = SplitSection()
    num_train: Count = Field(description="Declared number n of training units.")
    num_validation: Count | None = Field(
        None, description="Declared number of validation units."
    )
    max_length: Annotated[int, Field(ge=2, le=131072)] = Field(
        128, description="Tokens a record is padded or cut to."
    )
    deduplicate: Literal["none", "exact", "beforehand"] = Field(
        "none",
        description="exact: equal texts once, across units. beforehand: the file was "
        "prepared across units. Both make the relation_domain 'prepared'.",
    )

    def spec(self, base_dir: Path) -> DataSpec:
        """Returns the section as the data loader takes it, with its path resolved.

        Raises:
            DataError: Columns or labels contradict one another.
        """
        return DataSpec(
            path=(base_dir / self.path).resolve(),
            num_train=self.num_train,
            text=self.text,
            messages=self.messages,
            label=self.label,
            labels=self.labels or (),
            id=self.id,
            user=self.user,
            split=self.split.spec(),
            num_validation=self.num_validation,
            max_length=self.max_length,
            deduplicate=self.deduplicate,
            format=self.format,
        )

    @model_validator(mode="after")
    def _columns(self) -> DataSection:
        self.spec(Path())
        return self
