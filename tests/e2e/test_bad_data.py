"""Data that cannot be used: refused in the driver, before anything is written."""

from __future__ import annotations

import json

import pytest

from tests.e2e.refusals import pft, rows_with
from tests.tiny_job import job_dict, make_rows, write_csv

ROWS = make_rows(200)


def as_csv(rows):
    """The rows as CSV text."""
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[n]) for n in names) for row in rows)]
    return "\n".join(lines) + "\n"


def as_jsonl(rows):
    """The rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def without(column):
    """The rows without one column."""
    return [{k: v for k, v in row.items() if k != column} for row in ROWS]


RAGGED = as_csv(ROWS).replace("\nr7,", "\nsecretcell,r7,", 1)
QUOTES = as_csv(ROWS).replace("\nr7,", '\nr7,"secret,', 1)
BROKEN_JSON = as_jsonl(ROWS).replace('{"id": "r9"', '{"id": "r9" secret', 1)
LATIN = as_csv(ROWS).replace("word", "wörd").encode("latin-1")

# File name, content, what the message must say, what the fix must say.
FILES = {
    "empty": ("d.csv", "", "is empty", "records"),
    "header-only": ("d.csv", "id,text,label,sender\n", "holds no records", "records"),
    "no-header": ("d.csv", "\n" + as_csv(ROWS), "no header row", "first line"),
    "latin-1": ("d.csv", LATIN, "not UTF-8: line 2", "UTF-8"),
    "utf-16": ("d.csv", as_csv(ROWS).encode("utf-16"), "UTF-16", "UTF-8"),
    "ragged": ("d.csv", RAGGED, "line 9: 5 cells where the header names 4", "quotes"),
    "quotes": ("d.csv", QUOTES, "line .*: the quotes do not match|cells", "quote"),
    "column-twice": (
        "d.csv",
        as_csv(ROWS).replace("sender", "text", 1),
        "two columns 'text'",
        "Rename",
    ),
    "column-missing": (
        "d.csv",
        as_csv(without("text")).replace("label", "texts", 1),
        "no column 'text'",
        "mean 'texts'",
    ),
    "json-broken": ("d.jsonl", BROKEN_JSON, "line 10", ""),
    "json-array": ("d.json", json.dumps(ROWS), "one JSON array", "a line"),
    "json-scalars": ("d.jsonl", "1\n2\n", "line 1: not a JSON object", "column"),
    "json-nan": ("d.jsonl", '{"id": NaN}\n', "line 1", ""),
    "not-parquet": ("d.parquet", as_csv(ROWS), "not a readable parquet", "again"),
    "unknown-format": ("d.dat", as_csv(ROWS), "no format", "data.format"),
    "id-twice": (
        "d.csv",
        as_csv(rows_with(id=lambda row, k: "r3" if k == 8 else row["id"])),
        "records 4 and 9 the same id",
        "id of its own",
    ),
    "no-text": (
        "d.jsonl",
        as_jsonl(rows_with(text=lambda _row, k: k)),
        "'text' of .* holds int values, not text",
        "another column",
    ),
    "text-empty": ("d.csv", as_csv(rows_with(text="")), "empty in every", "filled"),
    "labels-undeclared": (
        "d.csv",
        as_csv(rows_with(label="secretlabel")),
        r"one of the declared labels \['no', 'yes'\]",
        "exactly as",
    ),
    "ids-empty": ("d.csv", as_csv(rows_with(id="")), "'id' .* empty in every", "fill"),
    "ids-fractions": (
        "d.jsonl",
        as_jsonl(rows_with(id=lambda _row, k: k + 0.5)),
        "'id' .* holds float values, not ids",
        "another column",
    ),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_file_is_refused(bench, case):
    name, content, says, fix = case
    job = bench.new_job(
        data__path=bench.new_file(name, content), data__registration="new-data"
    )
    error = bench.refused("budget", "create", job, says=says, fix=fix)
    assert error["code"] == "bad-data"


@pytest.mark.parametrize("verb", [["budget", "create", "--runs", 2], ["train"]])
def test_missing_file_and_wrong_kind_are_refused(bench, verb):
    job = bench.new_job(data__path="nowhere.csv")
    bench.refused(*verb, job, says="no data file .*nowhere", fix="data.path")
    job = bench.new_job(data__path="home")
    bench.refused(*verb, job, says="no saved data set and .* no parquet", fix="Name")
    job = bench.new_job(data__format="dataset")
    bench.refused(*verb, job, says="a file, not a data-set folder", fix="auto")


def test_columns_that_contradict_the_data_are_refused(bench):
    job = bench.new_job(data__split={"field": "sendr"}, data__registration="new-data")
    bench.refused("budget", "create", job, says="column 'sendr'", fix="mean 'sender'")
    job = bench.new_job(
        data__text=None,
        data__messages="text",
        data__label=None,
        data__labels=None,
        data__registration="new-data",
        model__task="causal_lm",
        training__phases=[
            job_dict()["training"]["phases"][1] | {"trainable": "adapter"}
        ],
    )
    bench.refused("budget", "create", job, says="not chat messages", fix="another")


def test_overlapping_copy_under_another_name_is_refused(bench):
    copy = bench.new_rows([*ROWS[:5], *make_rows(200, shift=1000)])
    job = bench.new_job(data__path=copy, data__registration="copied")
    bench.refused(
        "budget", "create", job, says="shares units with 'tiny-data'", fix="remove"
    )


def test_registered_name_with_other_data_is_refused(bench):
    job = bench.new_job(data__path=bench.new_rows(make_rows(200, shift=1000)))
    create = ["budget", "create", job, "--runs", 2]
    bench.refused(*create, says="registered with other data", fix="another name")
    bench.refused(
        "train", job, says="not those registered as 'tiny-data'", fix="Restore"
    )


def test_public_flag_that_changed_is_refused(bench):
    job = bench.new_job(data__public=True)
    create = ["budget", "create", job, "--runs", 2]
    bench.refused(*create, says="registered as private; that never", fix="another")
    bench.refused("train", job, says="is public: False, but the job", fix="correct")


def test_data_that_changed_after_registration_are_refused(tmp_path, monkeypatch):
    from tests.e2e.refusals import Bench

    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    changing = Bench(tmp_path)
    assert pft("budget", "create", changing.job).code == 0
    assert pft("train", changing.job, "--dry-run").code == 0
    rows = make_rows(200)
    # A changed text keeps its id: it is the same unit, as the registration says.
    rows[3]["text"] = "secret words"
    write_csv(tmp_path / "data.csv", rows)
    assert pft("train", changing.job, "--dry-run").code == 0
    for changed in (rows[1:], [*rows, *make_rows(1, shift=900)]):
        write_csv(tmp_path / "data.csv", changed)
        changing.refused("train", changing.job, says="not those registered", fix="Res")
