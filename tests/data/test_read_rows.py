"""Every format gives the same rows; every damaged file a typed refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pft_ray.data import DataSpec, SplitSpec, prepare_data, read_rows
from pft_ray.data.table import UNREADABLE
from pft_ray.errors import DataError

ROWS = [
    {"text": "first, with comma", "label": "ham", "who": "ann"},
    {"text": 'second "quoted"\nand a line', "label": "spam", "who": "bob"},
    {"text": "třetí 日本語 🙂", "label": "ham", "who": "ann"},
    {"text": "fourth", "label": "spam", "who": "eve"},
]
SECRET = "SECRET-7341"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "parquet_folder", "saved"])
def test_every_format_gives_the_same_rows(write, kind):
    table = read_rows(write(ROWS, kind), ["text", "who"])
    assert list(table.columns) == ["text", "who"]
    assert table.columns["text"] == [row["text"] for row in ROWS]
    assert table.columns["who"] == [row["who"] for row in ROWS]
    assert table.num_rows == 4
    assert table.names == ("text", "label", "who")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_chat_messages_survive(write, kind):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = read_rows(write([{"messages": chat}] * 2, kind), ["messages"])
    assert table.columns["messages"] == [chat, chat]


def test_tab_separated_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbftext\tn\nx, y\t1\n\n\t2\n")
    table = read_rows(path)
    assert table.columns == {"text": ["x, y", None], "n": ["1", "2"]}


def test_a_key_that_one_record_lacks_is_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "x": 1}\n\n{"text": "b"}\n')
    assert read_rows(path, ["x"]).columns == {"x": [1, None]}


def test_a_line_separator_inside_json_text_ends_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b\x85c"}\n{"text": "d"}', encoding="utf-8")
    assert read_rows(path).columns["text"] == ["a\u2028b\x85c", "d"]


def test_class_label_names_come_from_the_schema(tmp_path):
    feature = {"names": ["ham", "spam"], "_type": "ClassLabel"}
    meta = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"text": ["a", "b"], "label": [1, 0]})
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet").class_names == {"label": ("ham", "spam")}


def test_one_stored_text_that_is_not_utf8_spoils_no_other(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet").columns["text"] == [
        "good",
        UNREADABLE,
        "fine",
    ]


def test_arrow_file_format_is_read_like_the_stream_format(tmp_path):
    table = pa.table({"text": ["a", "b"]})
    folder = tmp_path / "set"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "d.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    assert read_rows(folder).columns["text"] == ["a", "b"]


def _lines(*lines):
    return ("a.jsonl", "\n".join(lines).encode())


GOOD = json.dumps({"text": SECRET, "label": "ham", "id": "1"})
TWO = json.dumps({"text": SECRET + "!", "label": "spam", "id": "2"})
# name -> (file, bytes, changes to the spec, what the message must say)
BAD_FILES = {
    "empty file": ("a.jsonl", b"", {}, "is empty"),
    "blank file": ("a.jsonl", b"\n \n", {}, "no records"),
    "header only": ("a.csv", b"text,label\n", {}, "no records"),
    "no header": ("a.csv", b"\n", {}, "no header"),
    "unknown suffix": ("a.docx", b"x", {}, "no format that is known"),
    "broken parquet": ("a.parquet", b"PAR1" + b"\0" * 40, {}, "not a readable parquet"),
    "text called parquet": ("a.parquet", GOOD.encode(), {}, "not a readable parquet"),
    "utf-16": ("a.csv", ("text,label\n" + SECRET).encode("utf-16"), {}, "UTF-16"),
    "latin-1": (
        "a.csv",
        f"text,label\n{SECRET},ham\n{SECRET} caf\xe9,ham\n".encode("latin-1"),
        {},
        "line 3, byte 42",
    ),
    "latin-1 behind a mark": (
        "a.csv",
        b"\xef\xbb\xbftext,label\n\xe9,ham\n",
        {},
        "line 2, byte 14",
    ),
    "ragged row": ("a.csv", f"text,label\n{SECRET},x,ham\n".encode(), {}, "3 cells"),
    "open quote": ("a.csv", f'text,label\n"{SECRET}'.encode(), {}, "quotes"),
    "column twice": ("a.csv", b"text,label,text\na,b,c\n", {}, "two columns 'text'"),
    "broken json": (*_lines(GOOD, '{"text": "' + SECRET), {}, "line 2: not JSON"),
    "nan": (*_lines(GOOD, '{"text": NaN}'), {}, "line 2: not JSON"),
    "deep json": (*_lines(GOOD, "[" * 100_000), {}, "line 2: not JSON"),
    "json list": (*_lines(GOOD, f'["{SECRET}"]'), {}, "not a JSON object"),
    "json array": (*_lines(f"[{GOOD}]"), {}, "one JSON array"),
    "missing column": (*_lines(GOOD), {"text": "txt"}, "no column 'txt'"),
    "missing label": (*_lines(GOOD), {"label": "labels"}, "no column 'labels'"),
    "missing split field": (
        *_lines(GOOD),
        {"split": SplitSpec(field="sender")},
        "no column 'sender'",
    ),
    "numbers for text": (*_lines('{"text": 5, "label": "ham"}'), {}, "holds int"),
    "empty column": (*_lines('{"text": null, "label": "ham"}'), {}, "is empty in"),
    "float labels": (
        *_lines('{"text": "a", "label": 0.5}'),
        {},
        "'label' of a.jsonl holds float",
    ),
    "text for messages": (
        *_lines(GOOD),
        {"text": None, "messages": "text", "label": None, "labels": ()},
        "not chat messages",
    ),
    "wrong labels": (*_lines(GOOD, TWO), {"labels": ("yes", "no")}, "declared labels"),
    "all blank": (*_lines('{"text": " ", "label": "ham"}'), {}, "No record"),
    "same id": (*_lines(GOOD, TWO, GOOD), {"id": "id"}, "records 1 and 3"),
    "float ids": (
        *_lines('{"text": "a", "label": "ham", "id": 1.5}'),
        {"id": "id"},
        "holds float values, not ids",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_without_private_text(tmp_path, name):
    file, raw, changes, expected = BAD_FILES[name]
    path = tmp_path / file
    path.write_bytes(raw)
    fields = {"text": "text", "label": "label", "labels": ("ham", "spam"), **changes}
    with pytest.raises(DataError) as caught:
        prepare_data(DataSpec(path=path, num_train=10, **fields), bytes(32))
    assert expected in caught.value.message
    assert caught.value.fix
    assert "SECRET" not in json.dumps(caught.value.to_dict())
    assert caught.value.exit_code == 2


def test_missing_column_names_the_closest_one(write):
    with pytest.raises(DataError, match="Did you mean 'text'"):
        read_rows(write(ROWS, "parquet"), ["texts"])


BAD_FOLDERS = {
    "nothing in it": ({}, "no saved data set"),
    "several splits": ({"dataset_dict.json": '{"splits": ["a", "b"]}'}, "'a', 'b'"),
    "broken state": ({"state.json": "{"}, "not valid JSON"),
    "state without files": ({"state.json": "{}"}, "names no data files"),
    "no shards": ({"state.json": '{"_data_files": []}'}, "no records"),
    "lost shard": (
        {"state.json": '{"_data_files": [{"filename": "x.arrow"}]}'},
        "lacks its data file",
    ),
    "shard elsewhere": (
        {"state.json": '{"_data_files": [{"filename": "../out.arrow"}]}'},
        "lacks its data file",
    ),
    "damaged shard": (
        {
            "state.json": '{"_data_files": [{"filename": "x.arrow"}]}',
            "x.arrow": "not arrow at all",
        },
        "not a readable arrow",
    ),
    "old index": ({"state.json": '{"_indices_data_files": [1]}'}, "an index"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_refused(tmp_path, name):
    files, expected = BAD_FOLDERS[name]
    (tmp_path / "out.arrow").write_text("")
    folder = tmp_path / "set"
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(folder)
    assert expected in caught.value.message


def test_shards_of_different_schemas_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match="different columns or types"):
        read_rows(tmp_path)


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(table, tmp_path / "1.parquet")
    with pytest.raises(DataError, match="two columns 'text'"):
        read_rows(tmp_path / "1.parquet", ["text"])


def test_missing_file_and_wrong_kind(tmp_path, write):
    with pytest.raises(DataError, match="no data file"):
        read_rows(tmp_path / "nowhere.csv")
    path = write(ROWS, "csv")
    with pytest.raises(DataError, match="is a file"):
        read_rows(path, file_format="dataset")
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path, file_format="csv")
    other = path.rename(tmp_path / "mail.data")
    assert read_rows(other, file_format="csv").num_rows == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(write):
    path = write(ROWS, "csv")
    path.chmod(0)
    with pytest.raises(DataError, match="may not be read"):
        read_rows(path)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pft_ray.data; "
        "print([m for m in ('torch','ray','pyarrow','transformers','tokenizers') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
