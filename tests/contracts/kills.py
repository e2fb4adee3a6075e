"""A run as threads: a rank, the coordinator, a reply or the driver is lost on purpose.

Everything that decides about privacy is the real thing: ledger, coordinator, loop,
step, sampler and noise. Ranks are threads, and the parts of Ray are replaced by what
they are documented to do: a dead rank ends its group, a new group starts from the
newest registered checkpoint, a dead coordinator comes back as a replay, a call whose
reply was lost is made again.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.cluster.specs import split_predicate
from pft_ray.config import BuiltJob, build_job, read_job
from pft_ray.crypto import derive_key, new_token
from pft_ray.ledger import BlockSpec, Ledger
from pft_ray.mechanisms import SampledGaussian, noisy_counts
from pft_ray.training.loop import LoopOutcome, TrainingLoop, merge_released
from pft_ray.training.step import PrivateStep
from pft_ray.training.types import ClippedSum
from tests.contracts.spies import Register, SpyCoordinator, SpyMechanism
from tests.tiny_job import job_dict
from tests.training.ranks import Ranks

RUN = "run-1"
WORLD = 2
SIZE = 8
MOST_LIVES = 12

Victim = Literal["rank", "coordinator", "reply", "driver", "stop"]


class Death(BaseException):
    """A rank's process is gone; nothing in it can catch that."""


class Lost(Exception):  # noqa: N818 - what a caller sees, not an error of ours
    """No reply came."""


@dataclass(frozen=True)
class Kill:
    """Who is lost at the ``nth`` time that ``rank`` comes to ``point``."""

    victim: Victim
    point: str
    nth: int = 1
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.victim}@{self.point}#{self.nth}r{self.rank}"


@dataclass
class Template:
    """A reserved run in a ledger, to be copied for each cell."""

    folder: Path
    built: BuiltJob


def make_template(folder: Path) -> Template:
    """Prepares a ledger with blocks and the reservation of one run."""
    job = read_job(job_dict(cluster__workers=WORLD, training__noise_shares=3))
    built = build_job(job, folder)
    fill_ledger(built, str(folder / "ledger.db"), folder / "keys")
    return Template(folder, built)


def fill_ledger(built: BuiltJob, url: str, keys_dir: Path) -> None:
    """Makes a ledger with the job's data set, its blocks and one reserved run."""
    job = built.job
    ledger = Ledger.open(url, keys_dir=keys_dir, create=True)
    ledger.register_dataset(
        "tiny-data", public=False, namespaces={"record:id": unit_digests(400)}, facts={}
    )
    for envelope, role in zip(built.envelopes, ("train", "validation"), strict=True):
        ledger.create_block(
            BlockSpec(
                name=envelope.block,
                dataset="tiny-data",
                predicate=split_predicate(job, role),
                unit="record",
                epsilon=80.0,
                delta=1e-4,
            )
        )
    ledger.reserve(RUN, built.plan, built.envelopes)
    ledger.close()


def unit_digests(count: int) -> np.ndarray:
    rows = [derive_key(bytes(32), "unit", i)[:16] for i in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


@dataclass
class Work:
    """A model of SIZE numbers; each unit pushes one of them by C."""

    host: Host
    rank: int
    vector: torch.Tensor = field(default_factory=lambda: torch.zeros(SIZE))

    def clipped_sum(self, positions, clip_norm):
        total = torch.zeros(SIZE, dtype=torch.float64)
        for position in positions:
            total[int(position) % SIZE] += clip_norm
        self.host.strike("summed", self.rank)
        return ClippedSum(total, clip_norm)

    def apply(self, grad):
        self.vector = self.vector + grad.vector
        self.host.strike("applied", self.rank)


class Host:
    """The driver's side of one cell: coordinator, checkpoints, and the fate of all."""

    def __init__(self, template: Template, folder: Path, kills: list[Kill]) -> None:
        shutil.copytree(template.folder, folder)
        self.folder, self.built, self.plan = folder, template.built, template.built.plan
        self.ledger = Ledger.open(folder / "ledger.db", keys_dir=folder / "keys")
        self.register = Register(self.ledger, RUN)
        self.kills = list(kills)
        self.struck: list[Kill] = []
        self.stored: dict[str, tuple[int, torch.Tensor]] = {}
        self.lock = threading.RLock()
        self.driver_lost = False
        self._seen: Counter[tuple[str, int]] = Counter()
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> Coordinator:
        """Starts a coordinator: the first, or one that replays after a crash."""
        bound = type(
            "Bound",
            (SpyCoordinator,),
            {
                "register": self.register,
                "hook": staticmethod(lambda point: self.strike(point, None)),
            },
        )
        return bound(
            CoordinatorConfig(
                str(self.folder / "ledger.db"),
                str(self.folder / "keys"),
                RUN,
                str(self.folder / "anchor.json"),
            )
        )

    def strike(self, point: str, rank: int | None) -> None:
        """Ends whoever is to be lost here; points inside the coordinator have no rank.

        Raises:
            Death: The rank's process, or the driver with all of them, is gone.
            Lost: The caller gets no reply.
        """
        with self.lock:
            key = (point, 0 if rank is None else rank)
            self._seen[key] += 1
            kill = next(
                (
                    k
                    for k in self.kills
                    if (k.point, k.rank) == key and k.nth == self._seen[key]
                ),
                None,
            )
            if kill is None:
                return
            self.kills.remove(kill)
            self.struck.append(kill)
            if kill.victim == "stop":
                self.coordinator.request_stop()
                return
            if kill.victim == "driver":
                self.driver_lost = True
            if kill.victim in ("coordinator", "driver"):
                self.coordinator = self.new_coordinator()
            raise Lost if kill.victim in ("coordinator", "reply") else Death

    def last_checkpoint(self) -> tuple[int, torch.Tensor | None]:
        """Returns where a new group starts: Ray's newest, or after a driver's death
        the newest that the ledger names."""
        names = list(self.stored)
        if self.driver_lost:
            registered = self.ledger.run_status(RUN).checkpoints
            names = [name for name in registered if name in self.stored]
        if not names:
            return 0, None
        step, vector = self.stored[names[-1]]
        return step, vector.clone()


@dataclass
class Line:
    """A rank's line to the coordinator; a call without a reply is made again."""

    host: Host
    rank: int
    token: bytes = field(default_factory=new_token)
    ahead: tuple | None = None

    def _call(self, name, *args):
        while True:
            try:
                with self.host.lock:
                    self.host.strike(f"{name}:before", self.rank)
                    result = getattr(self.host.coordinator, name)(*args)
                    self.host.strike(f"{name}:after", self.rank)
                    return result
            except Lost:
                continue

    def open_attempt(self, tokens, start, reason):
        return self._call("open_attempt", tokens, start, reason)

    def request(self, attempt, start, stop):
        asked, reply = self.ahead or (None, None)
        self.ahead = None
        if asked != (attempt, start, stop):
            reply = self._call("request", attempt, self.rank, self.token, start, stop)
        if reply.status == "granted":
            self.host.strike("granted", self.rank)
        return reply

    def ask_ahead(self, attempt, start, stop):
        reply = self._call("request", attempt, self.rank, self.token, start, stop)
        self.ahead = ((attempt, start, stop), reply)

    def charge_look(self, attempt, step):
        return self._call("charge_look", attempt, self.rank, self.token, step)

    def store_release(self, ordinal, values):
        self._call("store_release", ordinal, values)

    def released_looks(self):
        return self._call("released_looks")

    def progress(self, attempt, step):
        with self.host.lock:  # sent without waiting: it may be lost, never repeated
            return self.host.coordinator.progress(attempt, step)

    def checkpoint_registered(self, attempt, step, name):
        self._call("checkpoint_registered", attempt, step, name)


class Collective:
    """The ranks' exchange, with shares noted as they enter it."""

    def __init__(self, host: Host, group: Ranks, rank: int, mechanism) -> None:
        self._host, self._rank, self._mechanism = host, rank, mechanism
        self._inner = group.of(rank)

    def gather(self, words):
        found = self._inner.gather(words)
        if len(words) > 2:  # a header; what ranks agree on is shorter
            self._host.strike("checked", self._rank)
        return found

    def reduce(self, share):
        self._host.strike("drawn", self._rank)
        place = self._mechanism.place
        self._host.register.note_reduction(place, self._rank, share.vector)
        total = self._inner.reduce(share)
        self._host.strike("reduced", self._rank)
        return total


@dataclass
class Group:
    """One life of the rank processes."""

    host: Host
    life: int
    outcomes: list[LoopOutcome | None] = field(default_factory=lambda: [None] * WORLD)
    works: list[Work] = field(default_factory=list)

    def run(self) -> None:
        """Runs all ranks until they end or one of them dies."""
        start, vector = self.host.last_checkpoint()
        self.ranks = Ranks(WORLD)
        self.works = [Work(self.host, rank) for rank in range(WORLD)]
        for work in self.works:
            if vector is not None:
                work.vector = vector.clone()
        threads = [
            threading.Thread(target=self._live, args=(rank, start), daemon=True)
            for rank in range(WORLD)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a rank hangs"

    def _live(self, rank: int, start: int) -> None:
        try:
            self.outcomes[rank] = self._loop(rank).run(
                start, "resume" if start else "start"
            )
        except (Death, threading.BrokenBarrierError):
            self.ranks.barrier.abort()

    def _loop(self, rank: int) -> TrainingLoop:
        host, plan = self.host, self.host.plan
        line = Line(host, rank)
        mechanism = SpyMechanism(
            SampledGaussian.from_plan(plan), host.register, (self.life, rank)
        )
        collective = Collective(host, self.ranks, rank, mechanism)
        step = PrivateStep(
            plan, mechanism, self.works[rank], unit_digests(30)[rank::WORLD], collective
        )

        def save(step: int, attempt: int) -> None:
            name = f"step-{step:06d}-attempt-{attempt}"
            host.strike("saving", rank)
            self.ranks.of(rank).gather(np.zeros(1, dtype=np.int64))
            if rank == 0:
                host.stored[name] = (step, self.works[0].vector.clone())
                host.strike("stored", rank)
                line.checkpoint_registered(attempt, step, name)
            host.strike("saved", rank)

        def evaluate(key: bytes) -> list[int]:
            host.strike("looking", rank)
            host.register.note_look(key, len(host.register.looked) + 1)
            counts = [80, 20, *([1] * (2 * plan.evaluation.num_bins))]
            values = noisy_counts(key, counts, plan.evaluation.sigma)
            host.strike("looked", rank)
            return [int(value) for value in values]

        return TrainingLoop(
            plan,
            step,
            line,
            enter_phase=lambda index: host.strike("entered", rank),
            checkpoint=save,
            evaluate=evaluate,
        )


@dataclass
class Cell:
    """What one run of the matrix left behind."""

    host: Host
    status: str
    lives: int
    released: dict[int, int]
    works: list[Work]


def run_cell(template: Template, folder: Path, kills: list[Kill]) -> Cell:
    """Runs a run to its end through the losses given."""
    host = Host(template, folder, kills)
    released: dict[int, int] = {}
    group = Group(host, 0)
    outcome: LoopOutcome | None = None
    for life in range(MOST_LIVES):
        group = Group(host, life)
        group.run()
        seen = host.coordinator.status()["released"]
        released = merge_released(released, seen)
        ends = [o for o in group.outcomes if o is not None]
        outcome = ends[0] if len(ends) == WORLD else None
        for end in ends:
            released = merge_released(released, end.released)
        if outcome is None:
            continue  # a rank died: a new group starts from the last checkpoint
        if outcome.status != "interrupted":
            break
        _end(host, outcome.status, released)
        host.driver_lost = True
        host.coordinator = host.new_coordinator()
    assert outcome is not None, "the run did not end"
    _end(host, outcome.status, released)
    return Cell(host, outcome.status, life + 1, released, group.works)


def _end(host: Host, status: str, released: dict[int, int]) -> None:
    line = Line(host, 0)
    line._call("end_run", status, sum(released.values()))
