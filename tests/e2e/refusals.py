"""A bench for bad inputs: runs verbs in this process and checks how they refuse."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from pft_ray.cli.main import run
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import keys_dir, ledger_location
from tests.tiny_job import job_dict, make_rows, write_csv, write_job

# Words, numbers, ids and senders of the rows; no message may quote one.
PRIVATE = re.compile(r"\b(word\d+|n\d+|r\d+|s\d+|secret\w*)\b")


@dataclass(frozen=True)
class Answer:
    """What a verb printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


def pft(*arguments: object) -> Answer:
    """Runs the command line in this process, through its own entry point."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.object(sys, "argv", ["pft", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


class Bench:
    """A tiny job with its data, model and budget, and a place for bad copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = write_job(folder, rows=200)
        self._num_files = 0

    def new_file(self, name: str, content: str | bytes) -> str:
        """Writes a file beside the job under a fresh name; returns the name."""
        self._num_files += 1
        stem, _, suffix = name.partition(".")
        path = self.folder / f"{stem}-{self._num_files}.{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path.name

    def new_rows(self, rows: list[dict[str, Any]]) -> str:
        """Writes rows as CSV under a fresh name; returns the name."""
        name = self.new_file("rows.csv", "")
        write_csv(self.folder / name, rows)
        return name

    def new_job(self, **changes: Any) -> Path:
        """Writes the tiny job with changes; double underscores stand for dots."""
        text = yaml.safe_dump(job_dict(**changes), sort_keys=False)
        return self.folder / self.new_file("job.yaml", text)

    def position(self) -> tuple[int, str]:
        """Where the ledger stands."""
        with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
            return tuple(ledger.position())

    def refused(
        self, *arguments: object, says: str, fix: str = "", code: int = 2
    ) -> dict[str, Any]:
        """Runs a verb with --json and checks that it refuses well.

        Args:
            arguments: The command line.
            says: Regular expression that the message has to match.
            fix: Regular expression that the fix has to match.
            code: Exit code.
        """
        before = self.position()
        answer = pft(*arguments, "--json")
        assert answer.code == code, answer.out + answer.err
        error = answer.json["error"]
        assert set(answer.json) == {"error"}
        assert re.search(says, error["message"]), error
        assert error["fix"], error
        assert re.search(fix, error["fix"]), error
        assert error["code"] not in ("", "error"), error
        everything = answer.out + answer.err
        assert "Traceback" not in everything
        assert not PRIVATE.search(everything), everything
        assert self.position() == before
        return error


def rows_with(**changes: Any) -> list[dict[str, Any]]:
    """The tiny rows with one column replaced; a callable gets row and number."""
    rows = make_rows(200)
    for number, row in enumerate(rows):
        for name, value in changes.items():
            row[name] = value(row, number) if callable(value) else value
    return rows
