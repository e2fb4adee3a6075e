"""Says in plain words what pydantic found wrong with a job, and what to change."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from pft_ray.errors import ConfigError, PftError

_MOST_SHOWN = 5
_NAME_RULE = (
    "Use letters, digits and . _ - /, starting with a letter or digit, at most 100."
)
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section",
    "model_attributes_type": "a section",
}
# Keys of other tools that have a meaning but no place here.
_REFUSED = {
    "data.packing": (
        "data.packing is not possible: a row with several units in it is clipped as "
        "one, so the guarantee would be about rows, not units",
        "Leave data.packing out, and lower data.max_length against padding.",
    ),
    "privacy.relation": (
        "privacy.relation is not a choice: every guarantee is about adding or removing "
        "one unit; replace-one is not offered, since accountants disagree on it",
        "Leave privacy.relation out. Replacing a unit is removing one and adding one.",
    ),
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}
_LEAST_NORMAL = 2.3e-308


def config_error(
    error: ValidationError, source: str, model: type[BaseModel]
) -> ConfigError:
    """Returns one typed error for everything that is wrong with a job.

    Args:
        error: From the validation.
        source: What to call the job.
        model: The model that was validated, for the names of its keys.
    """
    items = error.errors(include_url=False)
    # A list that lost its wrong entries is not also too short.
    wrong = {item["loc"][:-1] for item in items if item["loc"]}
    items = [i for i in items if i["type"] != "too_short" or i["loc"] not in wrong]
    # What is missing is often there under a misspelt name: unknown keys come first.
    items.sort(key=lambda item: item["type"] != "extra_forbidden")
    pairs = [_describe(item, model) for item in items]
    found = [what for what, _ in pairs]
    more = len(found) - _MOST_SHOWN
    words = "; ".join(found[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    fixes = list(dict.fromkeys(fix for _, fix in pairs))[:_MOST_SHOWN]
    return ConfigError(f"{source}: {words}.", " ".join(fixes), {"problems": found})


def _describe(item: Any, model: type[BaseModel]) -> tuple[str, str]:
    """Returns (what was found, what to change) of one problem."""
    location, kind = item["loc"], item["type"]
    key = ".".join(str(part) for part in location) or "the job"
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, PftError):
        return cause.message.rstrip("."), cause.fix
    if kind == "extra_forbidden":
        return _unknown(key, location, model)
    if kind == "missing":
        return f"{key} is missing", f"Add {key}."
    if kind in _KINDS:
        return _wrong_kind(key, item["input"], _KINDS[kind])
    return _out_of_range(key, item)


def _unknown(
    key: str, location: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[str, str]:
    if key in _REFUSED:
        return _REFUSED[key]
    known = _keys_at(location, model)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if close:
        return f"unknown key {key}", f"Did you mean {close[0]!r}?"
    return f"unknown key {key}", f"Remove it; known there: {', '.join(known)}."


def _wrong_kind(key: str, value: Any, wanted: str) -> tuple[str, str]:
    found = f"{key} is {_shown(value)}, not {wanted}"
    if wanted.endswith("number") and isinstance(value, str):
        return found, f"Write {key} as {wanted}, without quotes or units."
    if wanted == "text" and isinstance(value, bool | int | float):
        return found, (
            f"Put {key} in quotes; without them YAML reads yes, no, on, off and digits "
            "as something else."
        )
    return found, f"Write {key} as {wanted}."


def _out_of_range(key: str, item: Any) -> tuple[str, str]:
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    found = f"{key} is {_shown(value)}"
    match kind:
        case "literal_error":
            return _not_among(found, value, context["expected"])
        case "string_too_short":
            return f"{key} is empty", f"Give {key} a value."
        case "too_short":
            count = context["actual_length"]
            entries = "1 entry" if count == 1 else f"{count or 'no'} entries"
            return f"{key} has {entries}", f"Give {context['min_length']} or more."
    fix = _range_of(key, kind, context, value)
    if fix is None:
        message = item["msg"][0].lower() + item["msg"][1:]
        return f"{found}: {message}", f"Correct {key}."
    return found, fix


def _range_of(key: str, kind: str, context: Any, value: Any) -> str | None:
    """Returns which values are allowed, or None when the kind is another."""
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        bound = context[name]
        if bound != _LEAST_NORMAL:
            return f"Give a value {word} {bound:g} as {key}."
        small = isinstance(value, float) and value > 0
        note = "; numbers below 1e-307 count as 0" if small else ""
        return f"Give {key} above 0{note}."
    return {
        "finite_number": f"Give a finite number as {key}.",
        "multiple_of": f"Give a multiple of {context.get('multiple_of')} as {key}.",
        "string_pattern_mismatch": _NAME_RULE,
    }.get(kind)


def _not_among(found: str, value: Any, expected: str) -> tuple[str, str]:
    words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    close = difflib.get_close_matches(str(value), words, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return found, f"{hint}Give {' or '.join(words)}."


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Returns the keys that are known where an unknown key was found."""
    for part in location[:-1]:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _section_of(model.model_fields[part].annotation)
        if inner is not None:
            model = inner
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None
