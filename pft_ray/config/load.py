"""Reads a job file: YAML to a checked, frozen :class:`JobSpec`."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pft_ray.config.problems import config_error
from pft_ray.config.sections import JobSpec
from pft_ray.errors import ConfigError

_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-5 as a number and refuses a key given twice."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                problem="merge keys (<<) are not read; write the values out",
                problem_mark=key_node.start_mark,
            )
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, dict | list):
            raise yaml.constructor.ConstructorError(
                problem="a key is a list or section",
                problem_mark=key_node.start_mark,
            )
        if key in result:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key!r} is given twice; keep one of them",
                problem_mark=key_node.start_mark,
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
        problem = getattr(error, "problem", None) or getattr(error, "reason", "")
        raise ConfigError(
            f"{source} is not valid YAML{where}: {problem}.", "Mend that line."
        ) from None
    except (ValueError, RecursionError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"{source} holds a value that YAML cannot read: {problem}.",
            "Put text in quotes.",
        ) from None


def _apply_overrides(data: dict[str, Any], overrides: list[str]) -> None:
    for item in overrides:
        path, separator, value = item.partition("=")
        parts = path.split(".")
        if not separator or not all(parts):
            raise ConfigError(
                f"--set {item!r} is not of the form key=value.",
                "Write --set section.key=value, for example --set privacy.epsilon=4.",
            )
        target: Any = data
        for part in parts[:-1]:
            target = _step_into(target, part, path)
        key = _key_in(target, parts[-1], path)
        target[key] = _parse_yaml(value, f"--set {path}")


def _step_into(target: Any, part: str, path: str) -> Any:
    key = _key_in(target, part, path)
    if isinstance(target, dict):
        target.setdefault(key, {})
    inner = target[key]
    if not isinstance(inner, dict | list):
        raise ConfigError(
            f"--set {path}: {part} is not a section.",
            "Check the path; set the whole section with {...} if there is none.",
        )
    return inner


def _key_in(target: Any, part: str, path: str) -> Any:
    if isinstance(target, dict):
        return part
    if part.isdecimal() and int(part) < len(target):
        return int(part)
    raise ConfigError(
        f"--set {path}: {part!r} is no place in a list of {len(target)}.",
        f"Count from 0 to {len(target) - 1}, for example training.phases.0.steps.",
    )


def _check_plain(value: Any, key: str, source: str) -> None:
    """Refuses what YAML can hold and JSON cannot, such as dates; names the key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(inner, f"{key}.{name}" if key else str(name), source)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_plain(inner, f"{key}.{place}", source)
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(
            f"{source}: {key} is read as a {type(value).__name__}.",
            f"Put {key} in quotes.",
        )


def read_job(
    data: Any, *, source: str = "the job", overrides: list[str] | None = None
) -> JobSpec:
    """Checks a job given as plain data.

    Args:
        data: Parsed YAML or JSON; it is not changed.
        source: What to call it in errors.
        overrides: ``section.key=value`` items that replace values. A number counts
            entries of a list: ``training.phases.0.steps=5``.

    Raises:
        ConfigError: Names the key, what was found and what to change.
    """
    if not isinstance(data, dict):
        kind = {"list": "a list", "str": "text"}.get(type(data).__name__, "a value")
        raise ConfigError(
            f"{source} holds {kind}, not sections.",
            "Start from jobs/quickstart.yaml or `pft init DATA`.",
        )
    try:
        data = deepcopy(data)
        _apply_overrides(data, overrides or [])
        _check_plain(data, "", source)
        raw = json.dumps(data)
    except RecursionError:
        raise ConfigError(
            f"{source} is nested too deep, or refers to itself.",
            "Write the values out.",
        ) from None
    try:
        return JobSpec.model_validate_json(raw)
    except ValidationError as error:
        raise config_error(error, source, JobSpec) from None


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
