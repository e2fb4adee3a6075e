"""Data that cannot be used: refused in the driver, before anything is written."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.e2e.refusals import pft, rows_with
from tests.tiny_job import job_dict, make_model, make_rows, write_csv

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


@pytest.mark.parametrize("verb", [["budget", "create"], ["train"]])
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
    bench.refused(
        "budget", "create", job, says="registered with other data", fix="another name"
    )
    bench.refused(
        "train", job, says="not those registered as 'tiny-data'", fix="Restore"
    )


def test_public_flag_that_changed_is_refused(bench):
    job = bench.new_job(data__public=True)
    bench.refused(
        "budget", "create", job, says="registered as private; that never", fix="another"
    )
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


MODELS = {
    "no-folder": ("nowhere", "no model folder", "model.path"),
    "file": ("data.csv", "is a file", "folder"),
    "no-config": ("home", "does not load", "config.json"),
    "package": ("package:no_such_pkg/model", "not installed", "pip install"),
    "package-folder": ("package:json/model", "no folder 'model'", "model.path"),
    "package-escape": ("package:json/../..", "leaves its package", "inside"),
    "package-name": ("package:../x", "names no package", "package:NAME"),
    "hub-no-revision": ("hub:org/name", "no fixed revision", "commit id"),
    "hub-branch": ("hub:org/name@main", "no fixed revision", "40 hex"),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_model_reference_is_refused(bench, case):
    path, says, fix = case
    error = bench.refused("train", bench.new_job(model__path=path), says=says, fix=fix)
    assert error["code"] == "bad-model"


def spoil(bench, name, spoil_folder):
    """A copy of the model in which something is broken; returns its name."""
    folder = bench.folder / name
    shutil.copytree(bench.folder / "model", folder)
    spoil_folder(folder)
    return name


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


def drop_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder):
    drop_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not loaded")


def drop_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def drop_config(folder):
    (folder / "config.json").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


def unknown_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(config))


def larger_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one-too-many"] = 64
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


SPOILT = {
    "weights-cut": (cut_weights, "does not load", "safetensors"),
    "weights-missing": (drop_weights, "does not load", "safetensors"),
    "weights-incomplete": (drop_a_tensor, "lack or misfit 1 tensor", "complete"),
    "weights-pickled": (pickle_weights, "does not load", "safetensors"),
    "tokenizer-missing": (drop_tokenizer, "tokenizer", "tokenizer.json"),
    "tokenizer-of-another": (larger_tokenizer, "token 64.*knows 64", "own tokenizer"),
    "config-missing": (drop_config, "does not load", "config.json"),
    "config-broken": (break_config, "does not load", "config.json"),
    "kind-unknown": (unknown_kind, "does not load", "knows without"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_model_is_refused(bench, name):
    change, says, fix = SPOILT[name]
    job = bench.new_job(model__path=spoil(bench, name, change))
    error = bench.refused("train", job, says=says, fix=fix)
    assert error["code"] == "bad-model"


LORA = {"rank": 2, "alpha": 4}
FITS = {
    "max-length": ({"data__max_length": 33}, "33; .* takes 32 tokens", "at most 32"),
    "max-length-special": ({"data__max_length": 2}, "adds 2 tokens", "above 2"),
    "targets": (
        {"model__lora": LORA | {"targets": ["q_proj"]}},
        "No module named q_proj",
        "Linear modules",
    ),
    "targets-not-linear": (
        {"model__lora": LORA | {"targets": ["LayerNorm"]}},
        "adapter fits|LayerNorm",
        "Linear modules",
    ),
    "layer": (
        {"model__lora": LORA | {"targets": ["query"], "layers": [1, 2]}},
        "layers named",
        "layers it has",
    ),
    "classifier-as-lm": (
        {
            "model__task": "causal_lm",
            "data__label": None,
            "data__labels": None,
            "training__phases": [
                job_dict()["training"]["phases"][1] | {"trainable": "adapter"}
            ],
        },
        "lack or misfit|does not load",
        "model",
    ),
}


@pytest.mark.parametrize("case", FITS.values(), ids=FITS)
def test_model_that_does_not_suit_the_job_is_refused(bench, case):
    changes, says, fix = case
    error = bench.refused("train", bench.new_job(**changes), says=says, fix=fix)
    assert error["code"] == "bad-model"


def test_model_in_the_folder_of_the_job_is_found(tmp_path):
    """A model path starts from the job file, wherever the verb is called."""
    from pft_ray.data.paths import resolve_model_path

    folder = make_model(tmp_path / "m")
    assert resolve_model_path("m", tmp_path) == str(folder.resolve())
