"""One cell without Ray: a run in processes of its own, with kills, to its end."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.kills.cases import Kill
from tests.kills.strikes import read_pid, struck, write_pid
from tests.kills.zygote import Zygote, is_gone, kill
from tests.postgres_server import PostgresServer

_CELL_S = 60.0
_MOST_DRIVERS = 6


@dataclass
class Cell:
    """What a run left behind.

    Attributes:
        ledger: The ledger's path or URL.
        status: completed, budget_exhausted or failed.
        report: The run's report.
        struck: Kills that happened.
    """

    folder: Path
    ledger: str
    status: str
    report: dict
    outcomes: list[dict]
    struck: list[Kill]
    drivers: int
    elapsed_s: float = 0.0


@dataclass
class Stage:
    """A zygote and, when a cell needs it, a PostgreSQL server."""

    zygote: Zygote = field(default_factory=Zygote)
    server: PostgresServer | None = None

    def close(self) -> None:
        self.zygote.close()
        if self.server is not None:
            self.server.close()

    def run(self, kills: list[Kill], **scene) -> Cell:
        """Runs a cell; a kill of PostgreSQL puts its ledger there."""
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="cell-", dir=self.zygote.folder))
        (folder / "checkpoints").mkdir()
        ledger = str(folder / "ledger.db")
        if any(kill.victim == "postgres" for kill in kills):
            ledger = self._new_database(folder)
        else:
            shutil.copy(self.zygote.template / "ledger.db", ledger)
            shutil.copytree(self.zygote.template / "keys", folder / "keys")
        scene |= {
            "folder": str(folder),
            "ledger": ledger,
            "address": str(self.zygote.address),
            "kills": [kill.to_dict() for kill in kills],
        }
        try:
            drivers = self._drive(folder, scene)
        finally:
            _end_leftovers(folder)
        document = json.loads((folder / "done.json").read_text())
        return Cell(
            folder,
            ledger,
            document["outcomes"][0]["status"],
            document["report"],
            document["outcomes"],
            struck(folder),
            drivers,
            time.monotonic() - started,
        )

    def _new_database(self, folder: Path) -> str:
        if self.server is None:
            self.server = PostgresServer()
        ledger = self.server.new_schema()
        pid = self.zygote.spawn("fill", folder=str(folder), ledger=ledger)
        assert is_gone(pid, 30)
        write_pid(folder, "postgres", self.server.pid)
        return ledger

    def _drive(self, folder: Path, scene: dict) -> int:
        """Starts a driver, and another when it was killed; minds the server."""
        end = time.monotonic() + _CELL_S
        for number in range(1, _MOST_DRIVERS + 1):
            driver = self.zygote.spawn("driver", **scene)
            while not is_gone(driver, 0.05):
                assert time.monotonic() < end, (folder / "log").read_text()[-4000:]
                self._mind_server(folder)
            self._mind_server(folder)
            if (folder / "done.json").exists():
                return number
            died = (folder / "struck-0").exists()
            assert died, (folder / "log").read_text()[-4000:]
        raise AssertionError((folder / "log").read_text()[-4000:])

    def _mind_server(self, folder: Path) -> None:
        if self.server is not None and self.server.is_dead():
            self.server.start()
            write_pid(folder, "postgres", self.server.pid)


def _end_leftovers(folder: Path) -> None:
    """Ends what is still there of the cell's own processes."""
    parts = ("driver", "worker-0", "worker-1", "coordinator", "frozen")
    for name in parts:
        if (folder / f"{name}.pid").exists():
            kill(read_pid(folder, name))
