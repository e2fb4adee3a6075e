"""Writes that the system refuses: full disks, limits, rights."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from pft_ray.errors import (
    LedgerStorageError,
)
from pft_ray.ledger import Ledger
from tests.ledger.builders import (
    add_blocks,
    live_through,
    make_envelopes,
    make_plan,
    num_rows,
    open_ledger,
)
from tests.ledger.replaying import run_python

_FILL = """
    import resource, signal, sys
    from pathlib import Path
    from pft_ray.errors import LedgerStorageError
    from tests.ledger.builders import *
    from tests.ledger.replaying import replay, running

    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    ledger = open_ledger(folder)
    add_blocks(ledger)
    epoch, attempt = start_run(ledger, phases=make_plan().phases * 100, size=10_000)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    acknowledged = 0
    try:
        for step in range(2000):
            ledger.charge_steps("run", epoch, attempt, step, step + 1, nonce(step))
            acknowledged = step + 1
    except LedgerStorageError as error:
        print("refused", error.code, error.details["sqlite"])
    if limit:
        hard = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert ledger.run_status("run").num_steps_charged >= acknowledged
    assert running(ledger) == replay(ledger.path)
    ledger.close()
    ledger = open_ledger(folder)
    charged = ledger.run_status("run").num_steps_charged
    assert acknowledged <= charged <= acknowledged + 1
    print("acknowledged", acknowledged)
    if limit:
        ledger.charge_steps("run", epoch, attempt, 1990, 1991, nonce(1990))
        print("works again")
"""


def test_a_limit_on_the_file_refuses_and_loses_nothing(tmp_path):
    done = run_python(_FILL, tmp_path, 400_000)
    assert done.returncode == 0, done.stderr
    assert "refused ledger-storage" in done.stdout
    assert "works again" in done.stdout
    acknowledged = int(done.stdout.split("acknowledged ")[1].split()[0])
    assert 10 < acknowledged < 1990
    with open_ledger(tmp_path) as ledger:
        assert ledger.run_status("run").num_steps_charged in (
            acknowledged + 1,
            acknowledged + 2,  # the refused one may have reached the disk
        )


# A mount name space of its own: the small disk goes away with the process.
_SMALL_DISK = ("unshare", "--mount", "sh", "-c")
_MOUNT = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'


def test_a_full_disk_refuses_and_loses_nothing(tmp_path):
    probe = [*_SMALL_DISK, _MOUNT, str(tmp_path), "true"]
    try:
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk; file limits are tested above")
    except FileNotFoundError:
        pytest.skip("no unshare to mount a disk; file limits are tested above")
    done = run_python(_FILL, tmp_path, 0, before=(*_SMALL_DISK, _MOUNT, str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "refused ledger-storage SQLITE_FULL" in done.stdout
    assert int(done.stdout.split("acknowledged ")[1]) > 10


_READ_ONLY = """
    import os, sys
    from pathlib import Path
    from pft_ray.errors import LedgerStorageError
    from pft_ray.ledger import Ledger, verify
    from tests.ledger.builders import *

    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    path = Path(sys.argv[1])
    try:
        ledger = Ledger.open(path)
        ledger.take_epoch("other")
    except LedgerStorageError as error:
        print("refused", error.message)
    print(verify(path, epsilon=price_nothing).num_entries)
"""


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_read_only_file_can_be_verified_and_not_charged(tmp_path, folder_mode):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        live_through(ledger)
        plan = make_plan()
        ledger.reserve("other", plan, make_envelopes(plan))
        rows = ledger.position().sequence
    # One level more under xdist; those above belong to the system.
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(
            ("test_", "popen-", "pytest-")
        ):
            parent.chmod(0o755)
    (tmp_path / "ledger.db").chmod(0o444)
    tmp_path.chmod(folder_mode)
    done = run_python(_READ_ONLY, tmp_path / "ledger.db")
    tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
    assert done.stdout.split()[-1] == str(rows)
    assert num_rows(tmp_path / "ledger.db") == rows


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerStorageError):
        Ledger.open(tmp_path / "file" / "ledger.db", create=True)


def test_a_disk_without_hard_links_is_a_typed_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LedgerStorageError):
        open_ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []
