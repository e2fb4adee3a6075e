"""Parquet files and saved data-set folders, read with pyarrow (imported when used)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pft_ray.data.table import UNREADABLE, RawTable, check_columns
from pft_ray.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"


def read_parquet(path: Path, columns: Sequence[str] | None) -> RawTable:
    """Reads one parquet file.

    Raises:
        DataError: It is not parquet, is damaged, or lacks a column.
    """
    return _read_shards(path.name, [path], columns, "parquet")


def read_dataset_folder(path: Path, columns: Sequence[str] | None) -> RawTable:
    """Reads a folder of ``datasets.Dataset.save_to_disk``, or of parquet files.

    Parquet files are read in the order of their names, sub-folders included.

    Raises:
        DataError: The folder holds several splits, names a shard that is not there,
            or holds no data.
    """
    source = path.name
    if (path / SPLITS_FILE).is_file():
        splits = _read_json(path / SPLITS_FILE).get("splits")
        raise DataError(
            f"{source} holds several splits: {splits}.",
            "Name the folder of one split; pft_ray makes its own validation block.",
        )
    if (path / STATE_FILE).is_file():
        return _read_shards(source, _saved_shards(path), columns, "arrow")
    shards = sorted(path.rglob("*.parquet"))
    if not shards:
        raise DataError(
            f"The folder {source} is no saved data set and holds no parquet file.",
            "Name a folder written by save_to_disk, or one with .parquet files.",
        )
    return _read_shards(source, shards, columns, "parquet")


def _saved_shards(folder: Path) -> list[Path]:
    state = _read_json(folder / STATE_FILE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder.name} was saved with an index over its rows.",
            "Save it again with a current version of datasets.",
        )
    try:
        names = [str(item["filename"]) for item in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(
            f"{folder.name}/{STATE_FILE} names no data files.", "Save the set again."
        ) from None
    shards = [folder / name for name in names]
    for shard, name in zip(shards, names, strict=True):
        if shard.resolve().parent != folder.resolve() or not shard.is_file():
            raise DataError(
                f"{folder.name} lacks its data file {name!r}.", "Copy the whole folder."
            )
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path.name} is not valid JSON.", "Save the data set again.")
    return value


def _read_shards(
    source: str, shards: list[Path], columns: Sequence[str] | None, kind: str
) -> RawTable:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError(
            f"{source} needs pyarrow, which is not installed.",
            "Run pip install 'pft-ray[train]', or give CSV or JSONL.",
        ) from None
    if not shards:
        return RawTable(source, {}, 0, ())
    read = _read_parquet_shard if kind == "parquet" else _read_arrow_shard
    try:
        pairs = [read(source, shard, columns) for shard in shards]
    except (pa.ArrowException, EOFError):
        raise DataError(
            f"{source} is not a readable {kind} file: it is damaged or of another "
            "format.",
            "Write it again, or set data.format.",
        ) from None
    names, first = pairs[0]
    parts = [part for _, part in pairs]
    for part in parts[1:]:
        if part.schema.remove_metadata() != first.schema.remove_metadata():
            raise DataError(
                f"The files of {source} have different columns or types.",
                "Write them with one schema.",
            )
    table = {
        name: [value for part in parts for value in _values(part.column(name))]
        for name in first.schema.names
    }
    num_rows = sum(part.num_rows for part in parts)
    return RawTable(source, table, num_rows, names, _class_names(first.schema.metadata))


def _read_parquet_shard(
    source: str, path: Path, columns: Sequence[str] | None
) -> tuple[tuple[str, ...], Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = tuple(file.schema_arrow.names)
        wanted = _wanted(source, names, columns)
        return names, file.read(columns=wanted)


def _read_arrow_shard(
    source: str, path: Path, columns: Sequence[str] | None
) -> tuple[tuple[str, ...], Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as raw:
        try:
            table = pa.ipc.open_stream(raw).read_all()
        except pa.ArrowInvalid:
            raw.seek(0)
            table = pa.ipc.open_file(raw).read_all()
        names = tuple(table.schema.names)
        return names, table.select(_wanted(source, names, columns))


def _wanted(
    source: str, names: tuple[str, ...], columns: Sequence[str] | None
) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{source} has two columns {name!r}.", "Rename one of them."
            )
    wanted = list(names if columns is None else columns)
    check_columns(source, names, wanted)
    return wanted


def _values(column: Any) -> list[Any]:
    """Returns the column as Python values; one bad value spoils no other."""
    try:
        return list(column.to_pylist())
    except ValueError:  # a stored text that is not UTF-8, a date out of range
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except ValueError:
        return UNREADABLE


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Returns the names of ClassLabel columns that ``datasets`` puts in the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(str(name) for name in feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
