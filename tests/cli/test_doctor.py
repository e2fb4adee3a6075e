"""`pft doctor` finds what is wrong with a machine, and changes nothing."""

from __future__ import annotations

import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError

import pytest

from pft_ray.cli import doctor
from pft_ray.ledger import Ledger
from tests.e2e.refusals import pft

Usage = namedtuple("Usage", "total used free")
GIB = 1024**3


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine on which all is well, and that has no ledger yet."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(0, 0, 50 * GIB))
    return tmp_path / "home"


def finding(name, ledger=None):
    return {found.name: found for found in doctor.examine(ledger)}[name]


def test_a_machine_in_order(home):
    answer = pft("doctor", "--json")
    assert answer.code == 0
    assert answer.json["ok"] is True
    levels = {found["name"]: found["level"] for found in answer.json["findings"]}
    assert set(levels.values()) == {"ok"}
    assert {"Python", "torch", "ray", "transformers", "peft", "disk", "ledger"} <= set(
        levels
    )
    assert not home.exists()


def test_packages_that_are_missing_or_untested(home, monkeypatch):
    def version(name):
        if name == "torch":
            raise PackageNotFoundError
        return "2.59.0"

    monkeypatch.setattr(doctor, "version", version)
    missing, old = finding("torch"), finding("ray")
    assert (missing.level, missing.found) == ("warn", "not installed")
    assert "pft-ray[train]" in missing.fix
    assert (old.level, old.found, old.fix) == ("warn", "2.59.0", "Tested with 2.60.")
    assert pft("doctor").code == 0


def test_little_space(home, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(0, 0, GIB // 4))
    disk, memory = finding("disk"), finding("shared memory")
    assert (disk.level, memory.level) == ("fail", "warn")
    assert "0.2 GiB free" in disk.found
    assert "PFT_HOME" in disk.fix
    assert "--shm-size" in memory.fix
    answer = pft("doctor")
    assert answer.code == 1
    assert "fail" in answer.out


def make_ledger(home):
    with Ledger.open(home / "ledger.db", keys_dir=home / "keys", create=True) as made:
        made.fingerprint_key()


def test_ledger_and_keys(home):
    assert finding("ledger").found == "none yet"
    assert finding("key").found == "none yet; made with the first ledger"
    make_ledger(home)
    assert finding("ledger").found.startswith("1 rows at ")
    assert finding("key").found == f"private, in {home / 'keys'}"
    (home / "keys" / "fingerprint.key").chmod(0o640)
    key = finding("key")
    assert (key.level, key.found) == ("fail", "fingerprint.key readable by others")
    assert "chmod 600" in key.fix


def test_a_damaged_ledger_is_a_finding_and_not_a_crash(home):
    make_ledger(home)
    (home / "ledger.db").write_bytes(b"not a database " * 500)
    ledger = finding("ledger")
    assert ledger.level == "fail"
    assert "page 1" in ledger.found
    assert ledger.fix
    assert pft("doctor", "--json").code == 1
    assert finding("ledger", str(home)).found == f"The ledger {home} is a folder."


def test_a_token_of_ray_that_others_can_read(home, tmp_path):
    token = tmp_path / "token"
    token.write_text("not shown")
    token.chmod(0o600)
    assert finding("Ray token").level == "ok"
    token.chmod(0o644)
    found = finding("Ray token")
    assert found.level == "warn"
    assert found.fix == f"chmod 600 {token}"
    answer = pft("doctor", "--json")
    assert "not shown" not in answer.out


def test_disk_usage_is_really_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "a" / "b"))
    free = shutil.disk_usage(tmp_path).free / GIB
    assert float(finding("disk").found.split()[0]) == pytest.approx(free, abs=1)
