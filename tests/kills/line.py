"""A coordinator behind a socket, and a rank's line to it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.crypto import new_token
from pft_ray.errors import CoordinatorUnreachableError, PftError
from tests.kills.journal import RUN, Journal, mark_of
from tests.kills.strikes import Strikes, write_pid

_ANSWER_S = 90.0


class KilledCoordinator(Coordinator):
    """The coordinator, with its append open to a kill and its keys noted as hashes."""

    def __init__(self, config: CoordinatorConfig, journal: Journal, strike) -> None:
        self.journal, self.strike = journal, strike
        super().__init__(config)

    def open_attempt(self, tokens, start, reason):
        number = super().open_attempt(tokens, start, reason)
        key = mark_of(self._attempt.key)
        self.journal.note("attempt", number=number, key=key, epoch=self._epoch)
        return number

    def _charge(self, current, token, start, stop):
        self.strike("append:before")
        stop = super()._charge(current, token, start, stop)
        self.strike("append:after")
        return stop


def serve_coordinator(folder: Path, ledger: str, strike: Strikes) -> None:
    """Is the coordinator's process: one call at a time, as an actor's."""
    journal = Journal(folder / "journal")
    coordinator = KilledCoordinator(
        CoordinatorConfig(
            ledger, str(folder / "keys"), RUN, str(folder / "anchor.json")
        ),
        journal,
        strike,
    )
    turn = threading.Lock()
    address = folder / f"coordinator-{os.getpid()}"
    listener = Listener(str(address), "AF_UNIX")
    write_pid(folder, "coordinator", os.getpid())

    def answer(connection: Connection) -> None:
        while True:
            try:
                name, arguments = connection.recv()
                with turn:
                    reply = _answer(coordinator, name, arguments, journal)
                connection.send(reply)
            except (EOFError, OSError):
                return  # the caller is gone

    while True:
        connection = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def _answer(coordinator, name, arguments, journal):
    try:
        return None, getattr(coordinator, name)(*arguments)
    except PftError as error:
        journal.note("refused", call=name, code=error.code)
        return error, None


@dataclass
class Line:
    """A rank's line; a call without a reply is made again, as by the actor's client."""

    folder: Path
    rank: int = 0
    token: bytes = field(default_factory=new_token)
    learn: object = None
    position: dict | None = None
    ahead: tuple | None = None
    pid: int = -1
    connection: Connection | None = None

    def call(self, name, *arguments):
        end = time.monotonic() + _ANSWER_S
        while True:
            try:
                return self._call(name, arguments)
            except (OSError, EOFError):
                self.connection = None
                if time.monotonic() > end:
                    raise CoordinatorUnreachableError(f"no answer to {name}") from None
                time.sleep(0.02)

    def _now(self) -> int:
        """Returns the pid of the coordinator that is there now."""
        return int((self.folder / "coordinator.pid").read_text())

    def _call(self, name, arguments):
        if self.connection is None:
            self.pid = self._now()
            address = str(self.folder / f"coordinator-{self.pid}")
            self.connection = Client(address, "AF_UNIX")
        self.connection.send((name, arguments))
        while not self.connection.poll(0.2):
            if self._now() != self.pid:
                raise EOFError  # another one took its place
        error, value = self.connection.recv()
        if error is not None:
            raise error
        return value

    def open_attempt(self, tokens, start, reason):
        return self.call("open_attempt", tokens, start, reason)

    def request(self, attempt, start, stop):
        asked, reply = self.ahead or (None, None)
        self.ahead = None
        if asked != (attempt, start, stop):
            reply = self._request(attempt, start, stop)
        if isinstance(reply, PftError):
            raise reply
        self.learn(reply.steps)
        self.position = reply.position or self.position
        return reply

    def _request(self, attempt, start, stop):
        return self.call("request", attempt, self.rank, self.token, start, stop)

    def ask_ahead(self, attempt, start, stop):
        try:
            reply = self._request(attempt, start, stop)
        except PftError as error:
            reply = error  # told when the reply is asked for
        self.ahead = ((attempt, start, stop), reply)

    def charge_look(self, attempt, step):
        return self.call("charge_look", attempt, self.rank, self.token, step)

    def store_release(self, ordinal, values):
        self.call("store_release", ordinal, values)

    def released_looks(self):
        return self.call("released_looks")

    def progress(self, attempt, step):
        """For the display and for warnings of a leaving node: not sent."""
        return False

    def checkpoint_registered(self, attempt, step, name):
        self.call("checkpoint_registered", attempt, step, name)
