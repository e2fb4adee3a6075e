"""A model packed as one file is unpacked once, whole or not at all, and checked."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from pft_ray.data import gguf, resolve_model_path
from pft_ray.errors import MissingExtraError, ModelError


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A packed file, and a list of the conversions made of it."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    made = []

    def convert(file, folder):
        made.append(file.name)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights of " + file.read_bytes())

    monkeypatch.setattr(gguf, "_convert", convert)
    file = tmp_path / "small.gguf"
    file.write_bytes(b"one")
    return file, made


def test_it_is_unpacked_once_under_the_home(packed, tmp_path):
    file, made = packed
    folder = gguf.converted_folder(file)
    assert folder.parent == tmp_path / "home" / "models"
    assert (folder / "model.safetensors").read_bytes() == b"weights of one"
    assert gguf.converted_folder(file) == folder
    assert made == ["small.gguf"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_content_is_another_model(packed):
    file, made = packed
    first = gguf.converted_folder(file)
    file.write_bytes(b"other")
    second = gguf.converted_folder(file)
    assert first != second
    assert (second / "model.safetensors").read_bytes() == b"weights of other"
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["change", "remove", "record", "foreign"])
def test_a_damaged_folder_is_refused(packed, damage):
    file, _ = packed
    folder = gguf.converted_folder(file)
    weights, record = folder / "model.safetensors", folder / gguf.RECORD
    if damage == "change":
        weights.write_bytes(b"weights of two")
    elif damage == "remove":
        weights.unlink()
    elif damage == "record":
        record.write_text("[]")
    else:
        content = json.loads(record.read_text()) | {"source_sha256": "0" * 64}
        record.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="damaged") as caught:
        gguf.converted_folder(file)
    assert "Remove that folder" in caught.value.fix


def test_a_conversion_that_fails_leaves_nothing(packed, monkeypatch):
    file, _ = packed

    def fail(_file, folder):
        (folder / "half").write_bytes(b"x")
        raise ModelError("no model", "give one")

    monkeypatch.setattr(gguf, "_convert", fail)
    with pytest.raises(ModelError, match="no model"):
        gguf.converted_folder(file)
    models = gguf.pft_home() / "models"
    assert list(models.iterdir()) == []


def test_several_processes_agree_on_the_first(packed, monkeypatch):
    file, made = packed
    together = threading.Barrier(2)
    convert = gguf._convert

    def slow(source, folder):
        together.wait(10)
        convert(source, folder)

    monkeypatch.setattr(gguf, "_convert", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(gguf.converted_folder(file)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 2
    assert len(found) == 2
    assert found[0] == found[1]
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


def test_a_home_that_cannot_be_written_is_named(packed, tmp_path):
    file, _ = packed
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ModelError, match="cannot be kept") as caught:
        gguf.converted_folder(file)
    assert "PFT_HOME" in caught.value.fix


def test_without_its_reader_the_fix_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match="gguf") as caught:
        resolve_model_path("m.gguf", tmp_path)
    assert "pip install --no-deps gguf" in caught.value.fix


def test_references_may_name_the_file(packed, monkeypatch):
    file, made = packed
    folder = gguf.converted_folder(file)
    assert resolve_model_path("small.gguf", file.parent) == str(folder)
    package = file.parent / "packed_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "inner.gguf").write_bytes(b"one")
    monkeypatch.syspath_prepend(file.parent)
    inner = resolve_model_path("package:packed_model_package/inner.gguf")
    assert inner != str(folder)  # named by the file it came from
    assert made == ["small.gguf", "inner.gguf"]
