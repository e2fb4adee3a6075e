"""Run folders: what a run leaves on disk, and finding one to resume."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from typing import IO, TYPE_CHECKING, Any

from pft_ray.assurance.claims import CHECKPOINTS
from pft_ray.errors import PftError, ResumeError
from pft_ray.telemetry import EventFile
from pft_ray.training.headers import read_whole, write_file

if TYPE_CHECKING:
    from pathlib import Path


EVENTS_FILE = "events.jsonl"


def new_run_id(name: str) -> str:
    """Returns a name that no other run has: job name, date and random letters."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{name.replace('/', '-')}-{stamp}-{secrets.token_hex(3)}"


class RunFolder:
    """One run's folder. Its lock is held by the process that drives the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def run_id(self) -> str:
        """The run's id, which is the folder's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of registered checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def events(self) -> EventFile:
        """The file of this run's events; a ledger can be told to write there, too."""
        return EventFile(self.path / EVENTS_FILE)

    def acquire(self) -> None:
        """Creates the folder if needed and locks it for this process.

        This object may take it again while it has it.

        Raises:
            ResumeError: Another process drives this run.
        """
        if self._lock is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        # Names of checkpoints tell attempts, their headers the ledger's length.
        self.checkpoints.mkdir(exist_ok=True, mode=0o700)
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ResumeError(
                f"The run {self.run_id} is driven by another process.",
                "Wait for it, or start a separate run with --new.",
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Removes the folder of a run that never began, and gives up the lock."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def write_json(self, name: str, data: Any, *, private: bool = False) -> None:
        """Writes ``name`` as indented JSON; ``private`` files are mode 0600."""
        path = self.path / name
        if private:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            temporary = path.with_name(path.name + ".tmp")
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600))
        write_file(path, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the folder.

        Raises:
            ResumeError: It is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            raise ResumeError(
                f"The run {self.run_id} has no readable {name}.",
                "Name a complete run folder.",
            ) from None

    def log_event(self, kind: str, **fields: Any) -> None:
        """Appends an operator's event to events.jsonl (mode 0600)."""
        self.events.write({"event": kind, **fields})

    def checkpoint_folders(self) -> list[Path]:
        """Returns every checkpoint folder that has a header, in no order."""
        return [header.parent for header in self.checkpoints.glob("*/*/header.json")]


def latest_checkpoint(
    folder: RunFolder, registered: list[str], plan_digest: str
) -> Path | None:
    """Returns the newest registered checkpoint that is there and whole.

    Args:
        folder: The run's folder.
        registered: Names that the ledger holds, oldest first.
        plan_digest: The checkpoint must belong to this plan, and to this run: what
            another run released is not paid for by this one.
    """
    found = {path.name: path for path in folder.checkpoint_folders()}
    for name in reversed(registered):
        if name not in found:
            continue
        try:
            header = read_whole(found[name])
        except PftError:
            continue
        if (header.run_id, header.plan_digest) == (folder.run_id, plan_digest):
            return found[name]
    return None
