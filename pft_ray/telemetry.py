"""The project's logger, and events for the operator.

The logger writes to stderr, so that ``--json`` owns stdout.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

LOGGER_NAME = "pft_ray"


def get_logger(name: str = LOGGER_NAME) -> logging.Logger:
    """Returns a logger below ``pft_ray``; no handler is attached here."""
    return logging.getLogger(name)


class Told(Protocol):
    """An event that can say itself as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the event as JSON."""


class EventTail:
    """Reads what is appended to an event file.

    Args:
        path: The file; it need not be there yet.
        whole: From its beginning; else from its present end.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() and not whole else 0

    def new(self) -> list[dict[str, Any]]:
        """Returns the events whose lines were finished since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._read += len(whole) + 1
        return [json.loads(line) for line in whole.split(b"\n")]


class EventFile:
    """A subscriber that appends events to a JSON-lines file, mode 0600.

    Several processes may append to one file: a line is one write. A missing folder is
    made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Told) -> None:
        """Appends an event of the budget."""
        self.write(event.to_dict())

    def write(self, event: dict[str, Any]) -> None:
        """Appends one line, with the time before it."""
        line = json.dumps({"time": round(time.time(), 3), **event}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
