"""Reads a job file: YAML to a checked, frozen :class:`JobSpec`."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pft_ray.config.sections import JobSpec
from pft_ray.errors import ConfigError

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-5 as a number and refuses a key given twice."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, dict | list):
            raise ConfigError("A key is not a plain word.", "Use plain keys.")
        if key in result:
            raise ConfigError(
                f"The key {key!r} is given twice, again on line "
                f"{key_node.start_mark.line + 1}.",
                "Keep one of them.",
            )
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" on line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(
            f"{source} is not valid YAML{where}: {problem}.", "Mend that line."
        ) from None


def _apply_overrides(data: dict[str, Any], overrides: list[str]) -> None:
    for item in overrides:
        path, separator, value = item.partition("=")
        if not separator or not path:
            raise ConfigError(
                f"--set {item!r} has no value.", "Write --set section.key=value."
            )
        target = data
        *parents, last = path.split(".")
        for part in parents:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {path}: {part} is not a section.", "Check the path."
                )
            target = inner
        target[last] = _parse_yaml(value, f"--set {path}")


def read_job(
    data: Any, *, source: str = "the job", overrides: list[str] | None = None
) -> JobSpec:
    """Checks a job given as plain data.

    Args:
        data: Parsed YAML or JSON.
        source: What to call it in errors.
        overrides: ``section.key=value`` items that replace values.

    Raises:
        ConfigError: Names the key, what was found and what to change.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} holds {type(data).__name__}, not sections.",
            "Start from jobs/quickstart.yaml or `pft init DATA`.",
        )
    data = dict(data)
    _apply_overrides(data, overrides or [])
    try:
        raw = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} holds a value that is not a number, text or list: {error}.",
            "Put text in quotes.",
        ) from None
    try:
        return JobSpec.model_validate_json(raw)
    except ValidationError as error:
        raise _config_error(error, source) from None


def load_job(path: str | Path, overrides: list[str] | None = None) -> JobSpec:
    """Reads and checks the job file at ``path``.

    Raises:
        ConfigError: The file is missing, unreadable or wrong.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no job file {path}.", "Check the path, or run `pft init DATA`."
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder.", "Name the YAML file in it.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from None
    data = _parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(f"{path} is empty.", "Start from jobs/quickstart.yaml.")
    return read_job(data, source=str(path), overrides=overrides)


def job_schema() -> dict[str, Any]:
    """Returns the JSON schema of a job file, for editors."""
    return JobSpec.model_json_schema()


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Returns the keys that are known where an unknown key was found."""
    model: type[BaseModel] = JobSpec
    for part in location[:-1]:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _section_of(model.model_fields[part].annotation)
        if inner is None:
            return []
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


def _config_error(error: ValidationError, source: str) -> ConfigError:
    problems = []
    fix = "Correct the job file."
    for item in error.errors(include_url=False, include_context=False):
        location = item["loc"]
        key = ".".join(str(part) for part in location) or "the job"
        if item["type"] == "extra_forbidden":
            known = _fields_at(location)
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}"
            problems.append(f"unknown key {key}; {hint}")
        elif item["type"] == "missing":
            problems.append(f"{key} is missing")
        elif item["type"] == "value_error":
            text = item["msg"].removeprefix("Value error, ")
            problems.append(f"{key}: {text}" if location else text)
        else:
            found = item["input"]
            shown = repr(found) if not isinstance(found, dict | list) else "a section"
            message = item["msg"][0].lower() + item["msg"][1:]
            problems.append(f"{key} is {shown[:60]}: {message}")
    return ConfigError(
        f"{source}: " + "; ".join(problems) + ".", fix, {"problems": problems}
    )
