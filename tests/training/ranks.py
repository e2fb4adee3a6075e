"""Ranks as threads, for tests of what needs a collective."""

from __future__ import annotations

import threading


class Ranks:
    """Ranks as threads; gathers and reductions meet at a barrier."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.slots: list = [None] * world
        self.barrier = threading.Barrier(world, timeout=20)

    def of(self, rank: int):
        group = self

        class Collective:
            def _exchange(self, value):
                group.slots[rank] = value
                group.barrier.wait()
                found = list(group.slots)
                group.barrier.wait()
                return found

            def gather(self, words):
                return self._exchange(words)

            def reduce(self, share):
                return sum(self._exchange(share.vector))

        return Collective()
