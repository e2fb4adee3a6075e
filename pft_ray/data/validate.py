"""Judges each record by itself, and the file only by what holds for all records.

Two kinds of finding are kept apart, because a refusal is itself an answer about the
data:

* A fault of *one record* (no text, an undeclared label, broken Unicode) drops that
  record and nothing else: it takes part with a contribution of zero, exactly as if
  it were absent. The run goes on; only the operator sees the count.
* A fault of *the whole file* (a column that holds no text at all, declared labels
  that no record carries) is refused, since no single record decides it.

The one exception is a repeated id, see :func:`pft_ray.data.units.check_ids`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pft_ray.data.table import UNREADABLE, RawTable
from pft_ray.data.windows import Moment, moment_of
from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pft_ray.data.spec import DataSpec

Message = tuple[str, str]
Content = str | tuple[Message, ...]

# Why a record can be dropped; the operator's report counts by these words.
NOT_TEXT = "not_text"
EMPTY = "empty"
BAD_UNICODE = "bad_unicode"
BAD_MESSAGES = "bad_messages"
UNKNOWN_ROLE = "unknown_role"
NO_ASSISTANT = "no_assistant"
MISSING_LABEL = "missing_label"
UNDECLARED_LABEL = "undeclared_label"
MISSING_ID = "missing_id"
MISSING_USER = "missing_user"
MISSING_SPLIT_FIELD = "missing_split_field"
MISSING_OWNER = "missing_owner"
MISSING_MOMENT = "missing_moment"
DUPLICATE = "duplicate"
TEMPLATE_FAILED = "template_failed"
TOKENIZER_FAILED = "tokenizer_failed"
NO_TARGET = "no_target"


# Who may speak in a conversation.
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Fault:
    """Why a record is dropped: one of the words above."""

    reason: str


@dataclass(frozen=True)
class Dropped:
    """What became of faulty records. For the operator only: counts are private.

    Attributes:
        records: Numbers of dropped records by reason; the first record is 1.
        num_truncated: Records that were cut to max_length and kept.
    """

    records: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_truncated: int = 0

    @classmethod
    def from_pairs(
        cls, pairs: Sequence[tuple[int, str]], num_truncated: int = 0
    ) -> Dropped:
        """Collects (record number, reason) pairs."""
        records: dict[str, list[int]] = {}
        for number, reason in pairs:
            records.setdefault(reason, []).append(number)
        return cls(
            {reason: tuple(sorted(records[reason])) for reason in sorted(records)},
            num_truncated,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped records by reason."""
        return {reason: len(numbers) for reason, numbers in self.records.items()}

    def __add__(self, other: Dropped) -> Dropped:
        pairs = [
            (number, reason)
            for part in (self, other)
            for reason, numbers in part.records.items()
            for number in numbers
        ]
        return Dropped.from_pairs(pairs, self.num_truncated + other.num_truncated)

    def to_dict(self, max_numbers: int = 1000) -> dict[str, Any]:
        """Returns JSON for operator.json, at most ``max_numbers`` numbers a reason."""
        return {
            "counts": self.counts,
            "num_truncated": self.num_truncated,
            "records": {k: list(v[:max_numbers]) for k, v in self.records.items()},
        }


@dataclass(frozen=True)
class Record:
    """One record that may take part.

    Attributes:
        number: Its place in the file, from 1; never an identity.
        content: Its text, or its (role, content) messages.
        target: Class index, or None.
        id: Value of the id column.
        user: Value of the user column.
        split_value: Value that decides its block; None: the content does.
        owner_value: Value that decides its owner; None: there are no owners.
        moment: What decides whether it lies in the window; None: there is none.
    """

    number: int
    content: Content
    target: int | None = None
    id: str | None = None
    user: str | None = None
    split_value: str | None = None
    owner_value: str | None = None
    moment: Moment | None = None


def key_text(value: Any) -> str | None:
    """Returns an id, user or field value as text; None when it cannot name anything.

    Whole numbers and texts count; ``7`` and ``"7"`` are the same value, whatever the
    file format.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value and _is_unicode(value):
        return value
    return None


def label_text(value: Any, class_names: Sequence[str] = ()) -> str | None:
    """Returns a label as text; numbers become names where the schema has names."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if class_names:
            return class_names[value] if 0 <= value < len(class_names) else None
        return str(value)
    return value if isinstance(value, str) else None


def content_of(value: Any, *, is_chat: bool) -> Content | Fault:
    """Returns the text or the messages of a record, or what is wrong with them."""
    if value is UNREADABLE:
        return Fault(BAD_UNICODE)
    if is_chat:
        return _messages_of(value)
    if not isinstance(value, str):
        return Fault(NOT_TEXT)
    if not _is_unicode(value):
        return Fault(BAD_UNICODE)
    return value if value.strip() else Fault(EMPTY)


def validate_row(
    number: int,
    row: Mapping[str, Any],
    spec: DataSpec,
    class_names: Sequence[str] = (),
) -> Record | Fault:
    """Judges one record from its own values and the public spec alone.

    Args:
        number: Place in the file, from 1.
        row: Values by column.
        spec: The job's data section.
        class_names: Public names of the label column's numbers, if any.

    Returns:
        The record, or the first reason to drop it.
    """
    content = content_of(row[spec.content_column], is_chat=spec.messages is not None)
    if isinstance(content, Fault):
        return content
    target = None
    if spec.label is not None:
        label = label_text(row[spec.label], class_names)
        if label is None:
            return Fault(MISSING_LABEL)
        if label not in spec.labels:
            return Fault(UNDECLARED_LABEL)
        target = spec.labels.index(label)
    values: dict[str, str | None] = {}
    for name, column, reason in (
        ("id", spec.id, MISSING_ID),
        ("user", spec.user, MISSING_USER),
        ("split_value", spec.split_column, MISSING_SPLIT_FIELD),
        ("owner_value", spec.owner, MISSING_OWNER),
    ):
        values[name] = None if column is None else key_text(row[column])
        if column is not None and values[name] is None:
            return Fault(reason)
    moment = None
    if spec.window_column is not None:
        moment = moment_of(row[spec.window_column])
        if moment is None:
            return Fault(MISSING_MOMENT)
    return Record(
        number=number, content=content, target=target, moment=moment, **values
    )


def validate_table(table: RawTable, spec: DataSpec) -> tuple[list[Record], Dropped]:
    """Judges every record; refuses only what is wrong with all of them.

    Returns:
        The records that may take part, in the order of the file, and the others.

    Raises:
        DataError: A column holds no value of its type in any record, no record
            carries a declared label, or no record at all can be used.
    """
    check_types(table, spec)
    class_names = _class_names(table, spec)
    records: list[Record] = []
    faults: list[tuple[int, str]] = []
    for number, row in _rows(table, spec):
        result = validate_row(number, row, spec, class_names)
        if isinstance(result, Fault):
            faults.append((number, result.reason))
        else:
            records.append(result)
    if not records:
        if spec.label is not None:
            _check_labels(table, spec, class_names)
        counts = dict(Counter(reason for _, reason in faults))
        first = f"; the first is record {faults[0][0]}" if faults else ""
        raise DataError(
            f"No record of {table.source} can be used "
            f"({', '.join(sorted(counts))}){first}.",
            "Give conversations with a text of role 'assistant': what the agent says."
            if set(counts) == {NO_ASSISTANT}
            else "Check the columns that the job names.",
            {"counts": counts},
        )
    return records, Dropped.from_pairs(faults)


def check_types(table: RawTable, spec: DataSpec) -> None:
    """Refuses columns that hold no usable value in any record.

    Raises:
        DataError: Names the column, its role and the type that was found.
    """
    chat = spec.messages is not None
    kind = "chat messages (lists of {role, content})" if chat else "text"
    _check_type(table, spec.content_column, list if chat else str, kind)
    if spec.label is not None:
        _check_type(table, spec.label, (str, int), "labels (text or whole numbers)")
    for column in dict.fromkeys((spec.id, spec.user, spec.split_column)):
        if column is not None and column != spec.content_column:
            _check_type(table, column, (str, int), "ids (text or whole numbers)")


def _check_type(
    table: RawTable, column: str, types: type | tuple[type, ...], kind: str
) -> None:
    found = None
    for value in table.columns[column]:
        if isinstance(value, types) or value is UNREADABLE:
            return
        if found is None and value is not None:
            found = type(value).__name__
    if found is None:
        raise DataError(
            f"Column {column!r} of {table.source} is empty in every record.",
            "Name a column that is filled.",
        )
    raise DataError(
        f"Column {column!r} of {table.source} holds {found} values, not {kind}.",
        "Name another column, or convert it in the file.",
        {"column": column, "found": found},
    )


def _check_labels(table: RawTable, spec: DataSpec, class_names: Sequence[str]) -> None:
    values = table.columns[str(spec.label)]
    if any(label_text(value, class_names) in spec.labels for value in values):
        return
    raise DataError(
        f"No record of {table.source} carries one of the declared labels "
        f"{list(spec.labels)} in column {spec.label!r}.",
        "Declare data.labels exactly as the file writes them; "
        "`pft init DATA` proposes them.",
        {"labels": list(spec.labels), "column": spec.label},
    )


def _class_names(table: RawTable, spec: DataSpec) -> tuple[str, ...]:
    """Returns the schema's class names if the job declares its labels by them."""
    names = table.class_names.get(spec.label or "", ())
    return tuple(names) if set(spec.labels) <= set(names) else ()


def _rows(table: RawTable, spec: DataSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    columns = [(name, table.columns[name]) for name in spec.columns]
    for place in range(table.num_rows):
        yield place + 1, {name: values[place] for name, values in columns}


def _messages_of(value: Any) -> Content | Fault:
    if not isinstance(value, list) or not value:
        return Fault(BAD_MESSAGES if value else EMPTY)
    messages = []
    for item in value:
        message = _message_of(item)
        if isinstance(message, Fault):
            return message
        messages.append(message)
    if not any(role == "assistant" and text.strip() for role, text in messages):
        return Fault(NO_ASSISTANT)
    return tuple(messages)


def _message_of(item: Any) -> Message | Fault:
    if not isinstance(item, dict):
        return Fault(BAD_MESSAGES)
    role, text = item.get("role"), item.get("content")
    if not isinstance(role, str) or not isinstance(text, str) or not role:
        return Fault(BAD_MESSAGES)
    if not _is_unicode(role) or not _is_unicode(text):
        return Fault(BAD_UNICODE)
    return (role, text) if role in ROLES else Fault(UNKNOWN_ROLE)


def _is_unicode(text: str) -> bool:
    """Tells whether a text can be encoded: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
