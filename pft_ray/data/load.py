"""Reads records from parquet, CSV, JSONL and saved data-set folders.

A file is either a list of records in its declared format or it is refused: a line
that is not JSON, a byte that is not UTF-8 in a text file, a ragged CSV row. The
guarantee is about files that parse; whether one parses is seen by the operator alone,
before any noise is drawn. What one record *contains* never fails here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pft_ray.data.arrow_files import read_dataset_folder, read_parquet
from pft_ray.data.table import RawTable, check_columns, check_rows
from pft_ray.data.text_files import read_csv, read_jsonl
from pft_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pft_ray.data.spec import Format

Concrete = Literal["parquet", "csv", "jsonl", "dataset"]

_BY_SUFFIX: dict[str, Concrete] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_READERS: dict[Concrete, Callable[[Path, Sequence[str] | None], RawTable]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "dataset": read_dataset_folder,
}


def read_rows(
    path: Path | str,
    columns: Sequence[str] | None = None,
    file_format: Format = "auto",
) -> RawTable:
    """Reads columns of a file or folder.

    Args:
        path: ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.json``
            (one object a line), or a folder: one written by
            ``datasets.Dataset.save_to_disk`` or one that holds parquet files.
        columns: Wanted columns; None reads all.
        file_format: Overrides what the name says.

    Returns:
        The records in the order of the file.

    Raises:
        DataError: The file is missing, empty, of an unknown format, damaged, wrongly
            encoded, lacks a column, or holds no record.
        MissingExtraError: Parquet or Arrow is asked for without pyarrow.
    """
    file = Path(path)
    kind = _kind(file, file_format)
    try:
        table = _READERS[kind](file, columns)
    except PermissionError:
        raise DataError(f"{file} may not be read.", "Check its permissions.") from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or 'the read failed'}.",
            "Check the file and its disk.",
        ) from None
    check_rows(table.source, table.num_rows)
    check_columns(table.source, table.names, columns or ())
    return table


def _kind(file: Path, file_format: Format) -> Concrete:
    if not file.exists():
        raise DataError(
            f"There is no data file {str(file)!r}.",
            "Check data.path; it starts from the folder of the job file.",
        )
    if file.is_dir():
        if file_format not in ("auto", "dataset", "parquet"):
            raise DataError(
                f"{file} is a folder, not a {file_format} file.",
                "Name the file in it, or set data.format: dataset.",
            )
        return "dataset"
    if file.stat().st_size == 0:
        raise DataError(f"{file.name} is empty.", "Give a file with records.")
    if file_format == "dataset":
        raise DataError(
            f"{file.name} is a file, not a data-set folder.",
            "Name the folder, or set data.format: auto.",
        )
    if file_format != "auto":
        return file_format
    kind = _BY_SUFFIX.get(file.suffix.lower())
    if kind is None:
        raise DataError(
            f"{file.name} is of no format that is known by its name.",
            f"Known: {', '.join(_BY_SUFFIX)} and data-set folders; else set "
            "data.format.",
        )
    return kind
