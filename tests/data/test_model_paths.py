"""Model references: folders, packages that are not imported, pinned hub ids."""

from __future__ import annotations

import sys

import pytest

from pft_ray.data import pretrained_arguments, resolve_model_path
from pft_ray.errors import ModelError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_starts_from_the_job_file(tmp_path):
    (tmp_path / "jobs" / "model").mkdir(parents=True)
    expected = str((tmp_path / "jobs" / "model").resolve())
    assert resolve_model_path("model", tmp_path / "jobs") == expected
    assert resolve_model_path("../jobs/model", tmp_path / "jobs") == expected
    assert resolve_model_path(expected) == expected
    name, arguments = pretrained_arguments(expected)
    assert (name, arguments["local_files_only"]) == (expected, True)
    assert arguments["trust_remote_code"] is False


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
    folder = tmp_path / "some_model_package"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = resolve_model_path("package:some_model_package/model")
    assert found == str((folder / "model").resolve())
    assert resolve_model_path("package:some_model_package") == str(folder.resolve())
    assert "some_model_package" not in sys.modules


def test_a_hub_id_passes_through_with_its_revision():
    reference = f"hub:org/name-1.5@{REVISION}"
    assert resolve_model_path(reference) == reference
    assert pretrained_arguments(reference) == (
        "org/name-1.5",
        {"revision": REVISION, "trust_remote_code": False},
    )


BAD = {
    "hub:org/name": "no fixed revision",
    "hub:org/name@main": "no fixed revision",
    f"hub:org/name/more@{REVISION}": "no fixed revision",
    f"hub:@{REVISION}": "no fixed revision",
    "package:": "names no package",
    "package:no-such/model": "names no package",
    "package:numpy.linalg/x": "names no package",
    "package:no_such_package_here/model": "is not installed",
    "package:numpy/no/such/folder": "has no folder",
    "package:numpy/../..": "leaves its package",
    "no/such/folder": "no model folder",
    "file.txt": "is a file",
}


@pytest.mark.parametrize("reference", BAD)
def test_a_bad_reference_is_refused(reference, tmp_path):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelError, match=BAD[reference]) as caught:
        resolve_model_path(reference, tmp_path)
    assert caught.value.fix
