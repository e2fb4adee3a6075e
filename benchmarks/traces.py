"""Seeded traces of a cluster: other tenants' load, losses of nodes, prices by hour.

A trace is made from its kind, the size of the run and a seed, so the seeds are all that
has to be kept. Nothing in it knows which contestant reads it. Per kind:

* ``shared``: an on-premise pool of 1.5 times the nodes that the largest run needs, no
  prices. Other tenants use 35 % of it on average: a daily wave of 15 points either
  way, its phase drawn at random, and noise (first order, correlation 0.95 a minute,
  standard deviation 5 points). Crashes: 0.002 a node and hour. A node is ready in 20 s.
* ``on_demand``: a cloud with nodes of a fixed price. 10 % of the pool is taken by
  others with the same noise. Crashes: 0.002 a node and hour. Ready in 60 s.
* ``spot``: the same cloud with spot nodes. The price is drawn by hour (log-normal,
  first order, correlation 0.7, standard deviation 25 %). 25 % of the pool is taken, 10
  points wave. Losses: 0.05 a node and hour, three of four announced 120 s before, the
  others without notice.

A loss hits one place of the pool, drawn evenly; it matters to a run that holds it. A
node that was lost is replaced after ten minutes, or by another that is free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

HORIZON_S = 12 * 3600.0
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
REPAIR_S = 600.0
NOTICE_S = 120.0
SLOTS = {10: 1, 100: 4, 1000: 8}  # workers on a node, by the size of the run
POOL = 1.5


@dataclass(frozen=True)
class Kind:
    """What a kind of traces is drawn from; rates are for a node and hour."""

    load: float
    wave: float
    start_s: float
    losses: float
    announced: float
    price: float | None
    price_deviation: float = 0.0


KINDS = {
    "shared": Kind(0.35, 0.15, 20.0, 0.002, 0.0, None),
    "on_demand": Kind(0.10, 0.0, 60.0, 0.002, 0.0, 2.0),
    "spot": Kind(0.25, 0.10, 60.0, 0.05, 0.75, 0.7, 0.25),
}


@dataclass(frozen=True)
class Loss:
    """One node that goes away."""

    time_s: float
    place: int
    announced: bool


@dataclass(frozen=True)
class Trace:
    """One drawn trace.

    Attributes:
        name: Kind, size and seed.
        kind: What it was drawn from.
        num_workers: Most workers of the run.
        num_slots: Workers on a node.
        pool: Nodes of the cluster.
        free: Nodes that no other tenant uses, by minute.
        prices: Of a node an hour, by hour; None without prices.
        losses: By time.
    """

    name: str
    kind: Kind
    num_workers: int
    num_slots: int
    pool: int
    free: np.ndarray
    prices: np.ndarray | None
    losses: tuple[Loss, ...] = field(default=())

    def free_at(self, time_s: float) -> int:
        """Returns the nodes that no other tenant uses."""
        return int(self.free[min(int(time_s / MINUTE_S), len(self.free) - 1)])

    def price_at(self, time_s: float) -> float | None:
        """Returns the price of a node an hour."""
        if self.prices is None:
            return None
        return float(self.prices[min(int(time_s / HOUR_S), len(self.prices) - 1)])


def make_trace(kind_name: str, num_workers: int, seed: int) -> Trace:
    """Draws a trace."""
    kind = KINDS[kind_name]
    salt = sorted(KINDS).index(kind_name)
    generator = np.random.default_rng([seed, salt, num_workers])
    num_nodes = -(-num_workers // SLOTS[num_workers])
    pool = int(np.ceil(POOL * num_nodes))
    minutes = np.arange(int(HORIZON_S / MINUTE_S)) * MINUTE_S
    phase = generator.uniform(0, 2 * np.pi)
    wave = kind.wave * np.sin(2 * np.pi * minutes / DAY_S + phase)
    used = kind.load + wave + _first_order(generator, len(minutes), 0.95, 0.05)
    free = np.floor(pool * (1 - np.clip(used, 0.0, 1.0))).astype(int)
    return Trace(
        f"{kind_name}-{num_workers}-{seed}",
        kind,
        num_workers,
        SLOTS[num_workers],
        pool,
        free,
        _prices(kind, generator),
        _losses(kind, pool, generator),
    )


def _prices(kind: Kind, generator: np.random.Generator) -> np.ndarray | None:
    if kind.price is None:
        return None
    hours = int(HORIZON_S / HOUR_S)
    return kind.price * np.exp(
        _first_order(generator, hours, 0.7, kind.price_deviation)
    )


def _losses(kind: Kind, pool: int, generator: np.random.Generator) -> tuple[Loss, ...]:
    count = generator.poisson(kind.losses * pool * HORIZON_S / HOUR_S)
    times = np.sort(generator.uniform(0, HORIZON_S, count))
    places = generator.integers(0, pool, count)
    announced = generator.uniform(size=count) < kind.announced
    rows = zip(times.tolist(), places.tolist(), announced.tolist(), strict=True)
    return tuple(Loss(*row) for row in rows)


def _first_order(
    generator: np.random.Generator, count: int, correlation: float, deviation: float
) -> np.ndarray:
    """Returns a stationary series with this correlation and standard deviation."""
    shocks = generator.normal(size=count) * deviation
    series = np.empty(count)
    series[0] = shocks[0]
    for index in range(1, count):
        series[index] = correlation * series[index - 1]
        series[index] += np.sqrt(1 - correlation**2) * shocks[index]
    return series
