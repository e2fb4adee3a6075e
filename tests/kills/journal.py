"""What really happened in a run, noted by its processes before it happened.

A journal is one file that every process appends to with O_APPEND, a line a write: a
process that is killed in the next instruction has left its line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from pathlib import Path

from tests.contracts.spies import Register

RUN = "run-1"


class Journal:
    """One process's pen; keys and shares are noted as hashes."""

    def __init__(self, path: Path | str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(path, flags, 0o600)

    def note(self, what: str, **fields) -> None:
        line = json.dumps({"what": what, "pid": os.getpid(), **fields}) + "\n"
        os.write(self._descriptor, line.encode())


def read_journal(path: Path | str) -> list[dict]:
    """Returns all lines; none when nothing was noted."""
    if not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def mark_of(secret: bytes) -> str:
    """Returns what stands for a key or share in a journal."""
    return hashlib.sha256(secret).hexdigest()


def ledger_rows(url: str, kind: str, run_id: str) -> list[dict]:
    """Returns the bodies of a run's rows, read past all code of the project.

    Raises:
        OSError: The database does not answer.
    """
    query = "SELECT body FROM entries WHERE kind = {} ORDER BY seq"
    if url.startswith("postgresql:"):
        found = _postgres_rows(url, query.format("%s"), kind)
    else:
        connection = sqlite3.connect(f"file:{url}?mode=ro", uri=True, timeout=20)
        try:
            found = connection.execute(query.format("?"), (kind,)).fetchall()
        finally:
            connection.close()
    bodies = [json.loads(body) for (body,) in found]
    return [body for body in bodies if body.get("run_id") == run_id]


def _postgres_rows(url: str, query: str, kind: str) -> list[tuple]:
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=2, autocommit=True) as connection:
            return connection.execute(query, (kind,)).fetchall()
    except psycopg.Error as error:
        raise OSError(str(error)) from None


def charged_steps(url: str, run_id: str) -> set[tuple[int, int]]:
    """Returns every (attempt, step) that is durable in the ledger now."""
    return {
        (body["attempt"], step)
        for body in ledger_rows(url, "grant", run_id)
        for step in range(body["start"], body["stop"])
    }


class JournalMechanism:
    """The plan's mechanism; each key is noted when it is used.

    Args:
        inner: The mechanism.
        journal: Where to.
        rank: The rank that uses the keys.
        ledger: (URL, run id), read at every draw of noise: is the step paid for?
    """

    def __init__(self, inner, journal: Journal, rank: int, ledger) -> None:
        self._inner, self._journal, self._rank = inner, journal, rank
        self._url, self._run = ledger
        self._meaning: dict[bytes, tuple[int, int, int]] = {}
        self.place = (-1, -1)

    def learn(self, steps) -> None:
        """Takes note of what the keys of granted steps are for."""
        for keys in steps:
            self._meaning[keys.sample_key] = (keys.attempt, keys.step, 0)
            for (share, _), key in zip(keys.shares, keys.noise_keys, strict=True):
                self._meaning[key] = (keys.attempt, keys.step, share)

    def sample(self, step_key, unit_digests):
        self.place = self._note("sample", step_key)
        return self._inner.sample(step_key, unit_digests)

    def share(self, noise_key, size, clip_norm, numerator):
        self._note("noise", noise_key)
        return self._inner.share(noise_key, size, clip_norm, numerator)

    def _note(self, domain: str, key: bytes) -> tuple[int, int]:
        attempt, step, share = self._meaning[key]
        paid = None
        if domain == "noise":
            try:
                paid = (attempt, step) in charged_steps(self._url, self._run)
            except OSError:
                paid = None  # the database is away; its rows are compared at the end
        self._journal.note(
            "key",
            domain=domain,
            key=mark_of(key),
            place=[attempt, step, share],
            rank=self._rank,
            paid=paid,
        )
        return attempt, step


class JournalRegister(Register):
    """A run's register, filled from its journal instead of by its own threads."""

    def __init__(self, url: str, run_id: str, entries: list[dict]) -> None:
        super().__init__(ledger=None, run_id=run_id)
        self.url = url
        lives = {e["pid"]: e["life"] for e in entries if e["what"] == "born"}
        for entry in entries:
            if entry["what"] == "key":
                self._draw(entry, lives[entry["pid"]])
            elif entry["what"] == "entered":
                place = (*entry["place"], entry["rank"])
                self.entered.append((*place, bytes.fromhex(entry["share"])))
            elif entry["what"] == "look":
                self.looked.append(bytes.fromhex(entry["key"]))

    def _draw(self, entry: dict, life: int) -> None:
        meaning = (entry["domain"], *entry["place"])
        if entry["paid"] is False:
            self.faults.append(f"{meaning} was drawn before it was charged")
        key = bytes.fromhex(entry["key"])
        self.drawn.append((meaning, key, (life, entry["rank"])))

    def charged(self) -> set[tuple[int, int]]:
        return charged_steps(self.url, self.run_id)
