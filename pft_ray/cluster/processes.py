"""Ends exactly the processes that carry a token, whoever their parent is by now.

As a program it is a guard: it waits until its starter is gone, however that ended,
then ends what carries the token and removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

import psutil

TOKEN_VARIABLE = "PFT_NODES_TOKEN"  # noqa: S105 - the name of a variable
_GONE_TIMEOUT_S = 20.0


def carriers(token: str) -> list[psutil.Process]:
    """Returns the processes in whose environment the token is.

    The environment is inherited, also by processes whose parent has died. The caller
    and its ancestors are never among them.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        except OSError:  # gone while its environment was read
            continue
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return [process for process in found if process.pid not in own]


def end_carriers(token: str, timeout_s: float = _GONE_TIMEOUT_S) -> bool:
    """SIGKILLs them, and those they start meanwhile, until there are none.

    Returns:
        Whether none is left after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while members := carriers(token):
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=1)
        if time.monotonic() > deadline:
            return False
    return True


def guard(token: str, folder: str) -> None:
    """Waits for the end of standard input, then cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        continue
    end_carriers(token)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.argv[1], sys.argv[2])
