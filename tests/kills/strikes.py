"""Kills at protocol points: each happens once in a run, whoever comes to it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.kills.cases import Kill
from tests.kills.journal import Journal
from tests.kills.zygote import kill


def write_pid(folder: Path, name: str, pid: int) -> None:
    """Says which process plays a part now."""
    draft = folder / f".{name}.{os.getpid()}"
    draft.write_text(str(pid))
    draft.replace(folder / f"{name}.pid")


def read_pid(folder: Path, name: str) -> int:
    return int((folder / f"{name}.pid").read_text())


def kill_server(pid: int) -> None:
    """SIGKILLs a PostgreSQL server with its children, as a power cut would."""
    try:
        family = psutil.Process(pid)
        members = [family, *family.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=20)


class Strikes:
    """What this process does at its points.

    Args:
        folder: The run's folder.
        kills: All kills of the run.
        rank: This process's rank; 0 for the coordinator.
    """

    def __init__(self, folder: Path, kills: list[dict], rank: int = 0) -> None:
        self._folder, self._rank = folder, rank
        self._kills = [Kill(**kill) for kill in kills]
        self._journal = Journal(folder / "journal")
        self._seen: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        """Kills whoever is due here; does not return when that is this process."""
        self._seen[point] += 1
        for number, due in enumerate(self._kills):
            here = due.in_coordinator or due.rank == self._rank
            if due.point != point or due.nth != self._seen[point] or not here:
                continue
            try:
                os.close(
                    os.open(
                        self._folder / f"struck-{number}", os.O_CREAT | os.O_EXCL, 0o600
                    )
                )
            except FileExistsError:
                continue  # it happened in an earlier life
            self._strike(due)

    def _strike(self, due: Kill) -> None:
        self._journal.note("struck", kill=due.to_dict())
        if due.victim == "frozen-coordinator":
            pid = read_pid(self._folder, "coordinator")
            write_pid(self._folder, "frozen", pid)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)  # this thread may be the last of its process to stop
        elif due.victim == "postgres":
            kill_server(read_pid(self._folder, "postgres"))
        elif due.victim == "head":
            # Who minds the run kills the node, and with it this process.
            write_pid(self._folder, "head-wanted", os.getpid())
            time.sleep(60)
        elif due.victim == "worker":
            kill(read_pid(self._folder, f"worker-{due.rank}"))
        else:
            kill(read_pid(self._folder, due.victim))


class OrderedStrikes(Strikes):
    """Kills of one long run, one after the other.

    A kill is due when the one before it happened and the run has come ``GAP`` steps
    further: two deaths in the steps of one grant would end the run, by design.
    """

    GAP = 5

    def __call__(self, point: str) -> None:
        number = sum(self._mark(i).exists() for i in range(len(self._kills)))
        if number == len(self._kills):
            return
        if number and read_pid(self._folder, "step") < self._step_of(number - 1):
            return
        due = self._kills[number]
        here = due.in_coordinator or due.rank == self._rank
        if due.point != point or not here:
            return
        self._seen[str(number)] += 1
        if self._seen[str(number)] == due.nth:
            self._mark(number).write_text(str(read_pid(self._folder, "step")))
            self._strike(due)

    def _mark(self, number: int) -> Path:
        return self._folder / f"struck-{number}"

    def _step_of(self, number: int) -> int:
        return int(self._mark(number).read_text() or "0") + self.GAP


def struck(folder: Path) -> list[Kill]:
    """Returns the kills that happened, in their order."""
    lines = (folder / "journal").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [Kill(**e["kill"]) for e in entries if e["what"] == "struck"]
