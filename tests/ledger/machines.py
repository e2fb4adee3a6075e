"""What state machines about one ledger share: two drivers, rows, refusals, replay."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from pft_ray.errors import PftError
from pft_ray.ledger import Ledger, LedgerState
from pft_ray.ledger.state import replay_row
from tests.ledger.builders import add_blocks, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS = (
    "SELECT seq, CAST(kind AS BLOB), CAST(body AS BLOB), CAST(prev_hash AS BLOB), "
    "CAST(hash AS BLOB) FROM entries ORDER BY seq"
)


class TwoDrivers(RuleBasedStateMachine):
    """Two open ledgers on one file, used as two drivers would."""

    def __init__(self) -> None:
        super().__init__()
        # In memory: these machines are about rules, other tests are about disks.
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(dir=base))
        self.ledgers: list[Ledger] = []
        self.nonces = 0
        self.last = 0

    @initialize()
    def start(self) -> None:
        self.ledgers = [open_ledger(self.folder) for _ in range(2)]
        add_blocks(self.ledgers[0])
        self.add_more()

    def add_more(self) -> None:
        """What a machine needs beside the two blocks of mode plan."""

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        shutil.rmtree(self.folder)

    def rows(self) -> list[tuple]:
        with closing(sqlite3.connect(self.folder / "ledger.db")) as connection:
            return connection.execute(_ROWS).fetchall()

    def attempt_call(self, call: Callable[[], object]) -> bool:
        """Makes a call; a refusal has to leave the file as it was."""
        before = self.rows()
        try:
            call()
        except PftError:
            assert self.rows() == before
            return False
        return True

    @invariant()
    def running_state_is_the_replay(self) -> None:
        if not self.ledgers:
            return
        state = LedgerState()
        rows = self.rows()
        for row in rows:
            replay_row(state, row)
        assert len(rows) >= self.last
        self.last = len(rows)
        for ledger in self.ledgers:
            assert ledger.position() == state.position
            assert ledger._chain._state == state


def run_of(machine: type[TwoDrivers], max_examples: int = 40) -> type:
    """Returns the machine's test case."""
    machine.TestCase.settings = settings(
        max_examples=max_examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return machine.TestCase
