"""CSV and JSON lines, read strictly with the standard library."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from typing import TYPE_CHECKING, Any

from pft_ray.data.table import RawTable, check_columns, check_rows
from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_MAX_CSV_FIELD = 1 << 30


def read_csv(path: Path, columns: Sequence[str] | None) -> RawTable:
    """Reads a CSV file with a header row; ``.tsv`` is separated by tabs.

    An empty cell counts as absent (None).

    Raises:
        DataError: Not UTF-8, no or repeated column names, a row with another number
            of cells than the header, or broken quotes.
    """
    source = path.name
    text = _decode(path.read_bytes(), source)
    previous = csv.field_size_limit(min(_MAX_CSV_FIELD, sys.maxsize))
    try:
        return _read_csv_text(text, source, _delimiter(path), columns)
    finally:
        csv.field_size_limit(previous)


def read_jsonl(path: Path, columns: Sequence[str] | None) -> RawTable:
    """Reads one JSON object a line; blank lines are skipped.

    A key that a record lacks counts as absent (None).

    Raises:
        DataError: Not UTF-8, a line that is not JSON or not an object, or one JSON
            array instead of lines.
    """
    source = path.name
    text = _decode(path.read_bytes(), source)
    if text.lstrip()[:1] == "[":
        raise DataError(
            f"{source} is one JSON array.", "Write one JSON object a line instead."
        )
    names: dict[str, None] = {}
    rows = []
    for row in _json_objects(text, source):
        names.update(dict.fromkeys(row))
        rows.append(row if columns is None else {k: row.get(k) for k in columns})
    check_rows(source, len(rows))
    wanted = list(names) if columns is None else list(columns)
    check_columns(source, names, wanted)
    table = {name: [row.get(name) for row in rows] for name in wanted}
    return RawTable(source, table, len(rows), tuple(names))


def _decode(raw: bytes, source: str) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source} is UTF-16 text.", "Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a leading mark the positions of the error count from behind it.
        start = error.start + (3 if raw.startswith(codecs.BOM_UTF8) else 0)
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(
            f"{source} is not UTF-8: line {line}, byte {start} of the file.",
            "Save it as UTF-8, for example with iconv.",
            {"line": line, "byte": start},
        ) from None


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _read_csv_text(
    text: str, source: str, delimiter: str, columns: Sequence[str] | None
) -> RawTable:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(header, source)
        wanted = header if columns is None else list(columns)
        check_columns(source, header, wanted)
        places = {name: header.index(name) for name in wanted}
        table: dict[str, list[Any]] = {name: [] for name in wanted}
        num_rows = 0
        for cells in reader:
            if not cells:
                continue  # a blank line
            if len(cells) != len(header):
                raise DataError(
                    f"{source}, line {reader.line_num}: {len(cells)} cells where "
                    f"the header names {len(header)}.",
                    "Put text that holds the separator or quotes in double quotes.",
                    {"line": reader.line_num},
                )
            num_rows += 1
            for name, place in places.items():
                table[name].append(cells[place] or None)
    except csv.Error:
        raise DataError(
            f"{source}, line {reader.line_num}: the quotes do not match.",
            'Write a quote inside a quoted cell twice: "".',
            {"line": reader.line_num},
        ) from None
    return RawTable(source, table, num_rows, tuple(header))


def _check_header(header: list[str], source: str) -> None:
    if not any(header):
        raise DataError(
            f"{source} has no header row.", "Name the columns in the first line."
        )
    seen: set[str] = set()
    for name in header:
        if name in seen:
            raise DataError(
                f"{source} has two columns {name!r}.", "Rename one of them."
            )
        seen.add(name)


def _json_objects(text: str, source: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            # The parser's own message is public: it names the syntax, not the text.
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "refused"
            raise DataError(
                f"{source}, line {number}: not JSON ({reason}).",
                "Write one JSON object a line.",
                {"line": number},
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{source}, line {number}: not a JSON object.",
                'Write each record as {"column": value, ...} on one line.',
                {"line": number},
            )
        yield row


def _no_constant(name: str) -> None:
    msg = f"{name} is not JSON"
    raise ValueError(msg)
