"""Who is killed, where: the fixed matrix and the random one."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Literal

Victim = Literal[
    "worker", "coordinator", "driver", "postgres", "frozen-coordinator", "gcs", "head"
]

# Where a process is in the protocol of one grant, by name. The first two are points
# in the coordinator, the others in a worker.
POINTS = {
    "before append": "append:before",
    "after append, before reply": "append:after",
    "after reply, before noise": "checked",
    "noise drawn, not sent": "drawn",
    "after all-reduce, before settle": "reduced",
    "during checkpoint": "saving",
    "checkpoint written, not in the ledger": "stored",
}
VICTIMS: tuple[Victim, ...] = ("worker", "coordinator", "driver", "postgres")
# With Ray, its control store alone and the whole head node can be lost, too.
RAY_VICTIMS: tuple[Victim, ...] = (*VICTIMS, "gcs", "head")
NAMES = {point: name for name, point in POINTS.items()}


@dataclass(frozen=True)
class Kill:
    """The ``nth`` time that a process of ``rank`` comes to ``point``, SIGKILL.

    Attributes:
        victim: Who is killed; a frozen coordinator is stopped instead, replaced, and
            woken again.
        point: A value of :data:`POINTS`.
        nth: Counted in one process's life.
        rank: Whose point it is; 0 in the coordinator. A worker that is the victim of
            a point in the coordinator is the one of this rank, too.
    """

    victim: Victim
    point: str
    nth: int = 1
    rank: int = 0

    @property
    def in_coordinator(self) -> bool:
        return self.point.startswith("append")

    def __str__(self) -> str:
        point = NAMES[self.point].replace(",", "").replace(" ", "-")
        return f"{self.victim}-{point}-{self.nth}-rank{self.rank}"

    def to_dict(self) -> dict:
        return asdict(self)


def fixed_kills() -> list[Kill]:
    """Every victim at every point, once early, and what else is worth a cell."""
    kills = [
        Kill(victim, point, nth=2)
        for point in POINTS.values()
        for victim in VICTIMS
        if point not in ("saving", "stored") or victim != "postgres"
    ]
    kills += [
        Kill("worker", "reduced", nth=5, rank=1),
        Kill("worker", "drawn", nth=1, rank=1),
        Kill("postgres", "saving", nth=1),
        Kill("frozen-coordinator", "append:before", nth=3),
        Kill("frozen-coordinator", "append:after", nth=3),
    ]
    return kills


def fixed_ray_kills() -> list[Kill]:
    """Ten kills in the order of one run on Ray Train."""
    return [
        Kill("coordinator", "append:before"),
        Kill("worker", "drawn", rank=1),
        Kill("postgres", "append:after"),
        Kill("gcs", "reduced"),
        Kill("coordinator", "append:after"),
        Kill("driver", "checked"),
        Kill("worker", "reduced"),
        Kill("postgres", "checked"),
        Kill("head", "drawn", rank=1),
        Kill("worker", "stored"),
    ]


def random_ray_runs(seed: int, count: int, per_run: int) -> list[list[Kill]]:
    """Returns ``count`` kills for runs on Ray Train, by the seed alone."""
    source = random.Random(seed)
    sizes = [per_run] * (count // per_run) + [count % per_run] * (count % per_run > 0)
    return [_ray_run(source, size) for size in sizes]


def _ray_run(source: random.Random, count: int) -> list[Kill]:
    """Kills of one run; at most one head node, which takes longest."""
    kills: list[Kill] = []
    while len(kills) < count:
        kill = random_kill(source, RAY_VICTIMS)
        if kill.victim == "head" and any(k.victim == "head" for k in kills):
            continue
        kills.append(replace(kill, nth=source.randint(1, 3)))
    return kills


def random_kill(source: random.Random, victims: tuple[Victim, ...] = VICTIMS) -> Kill:
    """Returns a kill at a random point of a random victim."""
    point = source.choice(list(POINTS.values()))
    in_coordinator = point.startswith("append")
    saves = point in ("saving", "stored")
    return Kill(
        victim=source.choice(victims),
        point=point,
        # Eight grants, sixteen steps and four checkpoints come in a quiet run.
        nth=source.randint(1, 7 if in_coordinator else 3 if saves else 12),
        rank=0 if in_coordinator or point == "stored" else source.randint(0, 1),
    )


def random_kills(seed: int, count: int) -> list[Kill]:
    """Returns ``count`` kills that depend on the seed alone."""
    source = random.Random(seed)
    return [random_kill(source) for _ in range(count)]
