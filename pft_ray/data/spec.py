"""What a job says about its data: column roles, declared sizes, split. All public."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pft_ray.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.data.windows import WindowSpec

Format = Literal["auto", "parquet", "csv", "jsonl", "dataset"]
Deduplicate = Literal["none", "exact", "beforehand"]
RelationDomain = Literal["raw", "prepared"]


@dataclass(frozen=True)
class SplitSpec:
    """How a unit is assigned to a block: by a public hash of one value of its own.

    Attributes:
        field: Column whose value is hashed. When absent: the user column, else the
            id column, else the record's own text.
        salt: Public salt; another salt gives another split.
        validation_fraction: Expected share of units in the validation block, in
            [0, 1).
        window: Records that are used at all, by a moment of their own; None: all.
    """

    field: str | None = None
    salt: str = "1"
    validation_fraction: float = 0.2
    window: WindowSpec | None = None

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        if not math.isfinite(fraction) or not 0 <= fraction < 1:
            raise DataError(
                f"split.validation_fraction is {fraction!r}.",
                "Give a number from 0 up to, but not including, 1.",
            )
        if not self.salt:
            raise DataError("split.salt is empty.", "Give a public text of any kind.")


@dataclass(frozen=True)
class DataSpec:
    """The data section of a job, checked. Every field is public.

    Attributes:
        path: File or folder.
        num_train: Declared number n of training units.
        text: Column of the text; exactly one of ``text`` and ``messages``.
        messages: Column of chat messages, each ``{role, content}``.
        label: Column of the class, with ``labels``.
        labels: Declared classes; a class's index is its place here.
        id: Column of distinct record ids; absent: ids come from the content.
        user: Column that names the person.
        split: How units go to the training and the validation block.
        num_validation: Declared number of validation units, or None.
        max_length: Tokens a record is padded or cut to.
        deduplicate: ``exact`` keeps one of several records of equal content, across
            units; ``beforehand`` says that the file was so prepared by others.
        format: File format; ``auto`` goes by the name.
        owner: Column that decides the owner of a record, when owners are told apart.
    """

    path: Path
    num_train: int
    text: str | None = None
    messages: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    id: str | None = None
    user: str | None = None
    split: SplitSpec = field(default_factory=SplitSpec)
    num_validation: int | None = None
    max_length: int = 128
    deduplicate: Deduplicate = "none"
    format: Format = "auto"
    owner: str | None = None

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_labels()
        for name in ("num_train", "num_validation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}.", "Declare a number >= 1.")
        if self.max_length < 2:
            raise DataError(
                f"max_length is {self.max_length}.", "Give 2 tokens or more."
            )

    def _check_columns(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise DataError(
                "Exactly one of text and messages must name a column.",
                "Give data.text for plain text or data.messages for chats.",
            )
        content = self.content_column
        for role in ("label", "id", "user"):
            if getattr(self, role) == content:
                raise DataError(
                    f"Column {content!r} is both the content and the {role}.",
                    f"Name another column as data.{role}, or leave it out.",
                )
        if self.label is not None and self.label in (self.id, self.user):
            raise DataError(
                f"Column {self.label!r} is both the label and an id.",
                "Name another column.",
            )

    def _check_labels(self) -> None:
        if (self.label is None) != (not self.labels):
            raise DataError(
                "label and labels belong together.",
                "Give the column and its declared classes, or neither.",
            )
        if self.label is None:
            return
        if self.messages is not None:
            raise DataError(
                "Chat messages cannot be classified.",
                "Give data.text for a classification, or leave data.label out.",
            )
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise DataError(
                f"labels declares {list(self.labels)}.",
                "Declare two or more different classes.",
            )

    @property
    def content_column(self) -> str:
        """The column of what is learnt: text or messages."""
        return self.text if self.text is not None else str(self.messages)

    @property
    def split_column(self) -> str | None:
        """The column the split hashes; None when it hashes the content."""
        return self.split.field or self.user or self.id

    @property
    def window_column(self) -> str | None:
        """The column of the moment; None when all records are used."""
        return self.split.window.field if self.split.window is not None else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once, in a fixed order."""
        named = (
            *(self.content_column, self.label, self.id, self.user),
            *(self.split_column, self.owner, self.window_column),
        )
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def relation_domain(self) -> RelationDomain:
        """``prepared`` when equal records of different units affect each other."""
        return "raw" if self.deduplicate == "none" else "prepared"
