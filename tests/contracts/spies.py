"""Spies of a run: which key was drawn for what, and which share entered where.

The spies see what really happens in the process: the bytes of every key at the moment
it is used, and what the ledger on the disk holds at that moment.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from pft_ray.cluster.coordinator import Coordinator
from pft_ray.ledger import Ledger


@dataclass
class Register:
    """All uses of keys and shares over the whole life of one run.

    Attributes:
        ledger: The ledger as another process reads it: durable rows only.
        run_id: The run.
        meaning: Key bytes to (domain, attempt, step, share), noted when derived.
        drawn: (meaning, key, (life, rank)) of each key at each use; a life is one
            group of rank processes.
        entered: (attempt, step, rank, bytes of the share) for each reduction.
        looked: Key bytes of each look that was noised.
        faults: What was found to be wrong, in words.
    """

    ledger: Ledger
    run_id: str
    meaning: dict[bytes, tuple] = field(default_factory=dict)
    drawn: list[tuple[tuple, bytes, tuple[int, int]]] = field(default_factory=list)
    entered: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    looked: list[bytes] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def charged(self) -> set[tuple[int, int]]:
        """Returns every (attempt, step) that the ledger on the disk holds."""
        rows = self.ledger.history(limit=100_000, run_id=self.run_id)
        return {
            (row.body["attempt"], step)
            for row in rows
            if row.kind == "grant"
            for step in range(row.body["start"], row.body["stop"])
        }

    def note_keys(self, steps) -> None:
        """Remembers what the keys of granted steps are for."""
        with self.lock:
            for keys in steps:
                place = (keys.attempt, keys.step)
                self._mean(keys.sample_key, ("sample", *place, 0))
                for (index, _), key in zip(keys.shares, keys.noise_keys, strict=True):
                    self._mean(key, ("noise", *place, index))

    def _mean(self, key: bytes, meaning: tuple) -> None:
        if self.meaning.setdefault(key, meaning) != meaning:
            self.faults.append(f"one key for {meaning} and {self.meaning[key]}")

    def note_draw(self, key: bytes, domain: str, incarnation: tuple[int, int]) -> None:
        """Notes a use of a key, and that its step is paid for on the disk."""
        with self.lock:
            meaning = self.meaning.get(key)
            if meaning is None or meaning[0] != domain:
                self.faults.append(f"a {domain} key that was granted for {meaning}")
                return
            if meaning[1:3] not in self.charged():
                self.faults.append(f"{meaning} was drawn before it was charged")
            self.drawn.append((meaning, key, incarnation))

    def note_reduction(self, place: tuple[int, int], rank: int, vector) -> None:
        """Notes that a share was given to the collective."""
        with self.lock:
            self.entered.append((*place, rank, vector.numpy().tobytes()))

    def note_look(self, key: bytes, num_paid: int) -> None:
        """Notes that the noise of a look is drawn."""
        with self.lock:
            self.looked.append(key)
            status = self.ledger.run_status(self.run_id)
            if status.num_looks_charged < num_paid:
                self.faults.append("a look was drawn before it was charged")


def find_reuse(register: Register) -> list[str]:
    """Returns everything that was used more often than it was paid for."""
    found = list(register.faults)
    noise = [use for use in register.drawn if use[0][0] == "noise"]
    found += _repeated([key for _, key, _ in noise], "noise key drawn")
    found += _repeated([meaning for meaning, _, _ in noise], "noise place drawn")
    sample = [use for use in register.drawn if use[0][0] == "sample"]
    # A sampling key is used once by each rank of one group, by no other group.
    found += _repeated([(key, rank) for _, key, (_, rank) in sample], "sampling key")
    found += _repeated([entry[:3] for entry in register.entered], "share sent")
    found += _repeated([entry[3] for entry in register.entered], "share bytes sent")
    found += _repeated(register.looked, "look key drawn")
    places = {entry[:2] for entry in register.entered}
    found += [f"{place} left uncharged" for place in places - register.charged()]
    return found


def _repeated(items: list, what: str) -> list[str]:
    seen: set = set()
    again = [item for item in items if item in seen or seen.add(item)]
    shown = [str(item)[:60] for item in again]
    return [f"{what} twice: {item}" for item in shown]


class SpyCoordinator(Coordinator):
    """The coordinator, with what it derives noted and its append open to a crash."""

    register: Register
    hook = staticmethod(lambda point: None)

    def _keys(self, current, rank, start, stop):
        steps = super()._keys(current, rank, start, stop)
        self.register.note_keys(steps)
        return steps

    def _charge(self, current, token, start, stop):
        self.hook("append:before")
        charged = super()._charge(current, token, start, stop)
        self.hook("append:after")
        return charged


class SpyMechanism:
    """The plan's mechanism; every key is noted when it is used."""

    def __init__(self, inner, register, incarnation: tuple[int, int]) -> None:
        self._inner, self._register = inner, register
        self._incarnation = incarnation
        self.place = (-1, -1)

    def sample(self, step_key, unit_digests):
        self._register.note_draw(step_key, "sample", self._incarnation)
        self.place = self._register.meaning[step_key][1:3]
        return self._inner.sample(step_key, unit_digests)

    def share(self, noise_key, size, clip_norm, numerator):
        self._register.note_draw(noise_key, "noise", self._incarnation)
        return self._inner.share(noise_key, size, clip_norm, numerator)
