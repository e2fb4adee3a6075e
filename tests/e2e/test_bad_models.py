"""Base models that do not suit a job: refused before anything is reserved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny_job import job_dict, make_model

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


def test_a_sound_package_model_passes(bench):
    """The quickstart's own model is looked at within a moment."""
    import time

    from pft_ray.cluster.model_check import check_model
    from pft_ray.config import load_job

    path = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
    job = load_job(path)
    check_model(job, path.parent)
    start = time.process_time()
    check_model(job, path.parent)
    assert time.process_time() - start < 2
