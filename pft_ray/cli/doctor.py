"""What ``pft doctor`` looks at. Nothing is changed and nothing heavy is imported."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pft_ray.errors import PftError

_TESTED = {"torch": "2.13", "ray": "2.60", "transformers": "5.23", "peft": "0.21"}
_LOW_DISK_BYTES = 2 * 1024**3
_LOW_SHM_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warn", "fail"]
    name: str
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON."""
        return asdict(self)


def examine(ledger: str | None) -> list[Finding]:
    """Looks at versions, disk, shared memory, ledger and keys."""
    return [
        _python(),
        *(_package(name, tested) for name, tested in _TESTED.items()),
        _disk(),
        _shared_memory(),
        _key(),
        _ledger(ledger),
        _ray_token(),
    ]


def _python() -> Finding:
    return Finding("ok", "Python", ".".join(str(p) for p in sys.version_info[:3]))


def _package(name: str, tested: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(
            "warn", name, "not installed", "pip install 'pft-ray[train]' to train."
        )
    if not found.startswith(tested):
        return Finding("warn", name, found, f"Tested with {tested}.")
    return Finding("ok", name, found)


def _disk() -> Finding:
    from pft_ray.ledger.home import pft_home

    place = pft_home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    words = f"{free / 1024**3:.1f} GiB free at {place}"
    if free < _LOW_DISK_BYTES:
        return Finding("fail", "disk", words, "Free space or set PFT_HOME elsewhere.")
    return Finding("ok", "disk", words)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")  # noqa: S108 - where Ray puts its object store
    if not place.is_dir():
        return Finding("warn", "shared memory", "no /dev/shm", "Ray will use the disk.")
    free = shutil.disk_usage(place).free
    words = f"{free / 1024**2:.0f} MiB free"
    if free < _LOW_SHM_BYTES:
        return Finding(
            "warn",
            "shared memory",
            words,
            "Give the container more, for example --shm-size=2g; else Ray uses disk.",
        )
    return Finding("ok", "shared memory", words)


def _key() -> Finding:
    from pft_ray.ledger.home import keys_dir

    folder = keys_dir()
    if not folder.exists():
        return Finding("ok", "key", "none yet; made with the first ledger")
    files = [path for path in folder.iterdir() if path.is_file()]
    loose = [path.name for path in files if path.stat().st_mode & 0o077]
    if loose:
        return Finding(
            "fail", "key", f"{', '.join(loose)} readable by others", "chmod 600 it."
        )
    return Finding("ok", "key", f"private, in {folder}")


def _ledger(url: str | None) -> Finding:
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location
    from pft_ray.ledger.postgres_url import redacted

    place = ledger_location(url)
    shown = redacted(place)
    if "://" not in place and not Path(place).exists():
        return Finding("ok", "ledger", "none yet", "pft budget create JOB.yaml")
    try:
        opened = Ledger.open(place, keys_dir=keys_dir(), create=False)
        return Finding("ok", "ledger", f"{opened.position().sequence} rows at {shown}")
    except PftError as error:
        return Finding("fail", "ledger", error.message, error.fix)


def _ray_token() -> Finding:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not path.exists():
        return Finding("ok", "Ray token", "none")
    if path.stat().st_mode & 0o077:
        return Finding("warn", "Ray token", "readable by others", f"chmod 600 {path}")
    return Finding("ok", "Ray token", "private")
