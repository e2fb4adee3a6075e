"""Crashes: whatever was acknowledged is in the replay, never less."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from pft_ray.accounting.plan import Phase
from pft_ray.ledger import Ledger, LedgerState
from pft_ray.ledger.state import replay_row
from pft_ray.ledger.store import Store
from tests.ledger.builders import (
    CHARGE_UNTIL_KILLED,
    add_blocks,
    nonce,
    open_ledger,
    start_run,
    where,
)
from tests.ledger.replaying import replay

ROOT = Path(__file__).parents[2]
_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_STRIDE_BYTES = 64


def copy_state(path: Path, folder: Path) -> Path:
    """Copies what a power cut would leave: the file and its log, no shared memory."""
    folder.mkdir(parents=True)
    for suffix in ("", "-wal"):
        source = Path(f"{path}{suffix}")
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder / path.name


def replayed(path: Path) -> LedgerState:
    """What SQLite's own recovery and the pure core make of a copy."""
    state = LedgerState()
    with closing(sqlite3.connect(path)) as connection:
        for row in connection.execute(
            "SELECT seq, CAST(kind AS BLOB), CAST(body AS BLOB), "
            "CAST(prev_hash AS BLOB), CAST(hash AS BLOB) FROM entries ORDER BY seq"
        ):
            replay_row(state, row)
    return state


def wal_bytes(path: Path) -> int:
    wal = Path(f"{path}-wal")
    return wal.stat().st_size if wal.exists() else 0


def test_the_log_cut_anywhere_keeps_every_whole_commit(tmp_path):
    """Cuts a copied log at every frame and every 64th byte.

    Without a checkpoint the log only grows, so the log at an earlier commit is a
    prefix of the last one: cutting the last copy covers the copies at all commits.
    """
    with open_ledger(tmp_path / "live") as ledger:
        ledger._chain.store.execute("PRAGMA wal_autocheckpoint=0")
        path = ledger.path
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        # Bytes of log at each acknowledged position, oldest first.
        acknowledged = [(wal_bytes(path), ledger.position())]
        copies = [copy_state(path, tmp_path / "at-0")]
        for step in range(6):
            position = ledger.charge_steps(
                "run", epoch, attempt, step, step + 1, nonce(step)
            )
            acknowledged.append((wal_bytes(path), position))
            copies.append(copy_state(path, tmp_path / f"at-{step + 1}"))
        page = ledger._chain.store.fetch("PRAGMA page_size")[0][0]
    last_db = copies[-1].read_bytes()
    last_wal = Path(f"{copies[-1]}-wal").read_bytes()
    for copy, (size, position) in zip(copies, acknowledged, strict=True):
        assert copy.read_bytes() == last_db
        assert Path(f"{copy}-wal").read_bytes() == last_wal[:size]
        assert replayed(copy).position == position
    frame = _FRAME_HEADER_BYTES + page
    frames = range(_HEADER_BYTES, len(last_wal) + 1, frame)
    assert len(last_wal) == frames[-1]
    cuts = sorted({*frames, *range(acknowledged[0][0], len(last_wal), _STRIDE_BYTES)})
    assert len(cuts) > 300
    copy = copies[-1]
    for cut in cuts:
        Path(f"{copy}-shm").unlink(missing_ok=True)
        copy.write_bytes(last_db)
        Path(f"{copy}-wal").write_bytes(last_wal[:cut])
        state = replayed(copy)
        reached = [position for size, position in acknowledged if size <= cut]
        if reached:
            assert state.position == reached[-1], cut


def test_copies_at_every_commit_replay_across_checkpoints(tmp_path):
    """The same while SQLite moves the log into the file between commits."""
    with open_ledger(tmp_path / "live") as ledger:
        ledger._chain.store.execute("PRAGMA wal_autocheckpoint=3")
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        sizes = set()
        for step in range(20):
            position = ledger.charge_steps(
                "run", epoch, attempt, step, step + 1, nonce(step)
            )
            copy = copy_state(ledger.path, tmp_path / f"at-{step}")
            sizes.add(copy.stat().st_size)
            state = replayed(copy)
            assert state.position == position
            assert state.runs["run"].num_steps_charged == step + 1
    assert len(sizes) > 1  # checkpoints did happen


def test_a_cut_copy_opens_and_goes_on(tmp_path):
    """A ledger that lost power in the middle of a commit works on from the last one."""
    with open_ledger(tmp_path / "live") as ledger:
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        ledger.charge_steps("run", epoch, attempt, 0, 1, nonce(0))
        size = wal_bytes(ledger.path)
        ledger.charge_steps("run", epoch, attempt, 1, 2, nonce(1))
        copy = copy_state(ledger.path, tmp_path / "cut")
    wal = Path(f"{copy}-wal")
    wal.write_bytes(wal.read_bytes()[: size + 100])
    with Ledger.open(copy) as again:
        assert again.run_status("run").num_steps_charged == 1
        epoch = again.take_epoch("run")
        attempt = again.open_attempt("run", epoch, 1, "coordinator-restart")
        again.charge_steps("run", epoch, attempt, 1, 2, nonce(1))
        assert again.run_status("run").num_steps_charged == 2


def test_a_kill_loses_no_acknowledged_charge(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        start_run(ledger, phases=(Phase("long", 20_000, "head", 1.0),))
    charged = 0
    for kill in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHARGE_UNTIL_KILLED), tmp_path],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        seen = b""
        # Different numbers of lines, so that kills fall at different moments.
        while seen.count(b"\n") < 5 + 37 * kill:
            seen += os.read(child.stdout.fileno(), 1 << 16)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
        seen += child.stdout.read()
        child.stdout.close()
        acknowledged = int(seen.splitlines()[-1])
        with open_ledger(tmp_path) as ledger:
            found = ledger.run_status("run").num_steps_charged
        assert acknowledged > charged
        assert acknowledged <= found <= acknowledged + 1
        charged = found


def test_a_charge_is_on_the_disk_before_it_is_acknowledged(ledger, monkeypatch):
    """Another connection sees the row when the call returns, and not before."""
    epoch, attempt = start_run(ledger)
    seen = []
    execute = Store.execute

    def spy(self, statement, parameters=()):
        if statement == "COMMIT":
            seen.append(replay(where(ledger)).runs["run"].num_steps_charged)
        return execute(self, statement, parameters)

    monkeypatch.setattr(Store, "execute", spy)
    ledger.charge_steps("run", epoch, attempt, 0, 4, nonce(0))
    assert seen == [0]
    assert replay(where(ledger)).runs["run"].num_steps_charged == 4


def test_every_commit_is_synchronised(tmp_path):
    """Counts fsync calls of the kernel: at least one for each acknowledged charge."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    script = """
        import sys
        from pathlib import Path
        from tests.ledger.builders import *
        ledger = open_ledger(Path(sys.argv[1]))
        add_blocks(ledger)
        epoch, attempt = start_run(ledger)
        for step in range(20):
            ledger.charge_steps("run", epoch, attempt, step, step + 1, nonce(step))
    """
    log = tmp_path / "trace"
    subprocess.run(
        [
            *(strace, "-f", "-e", "trace=fsync,fdatasync", "-o", str(log)),
            *(sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "ledger")),
        ],
        cwd=ROOT,
        check=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert log.read_text().count("sync(") >= 20
