"""The ranks' collective, with each share noted before it leaves its process."""

from __future__ import annotations

from pft_ray.cluster.collective import GlooCollective
from tests.kills.journal import mark_of


class SpyCollective(GlooCollective):
    """Gloo, with each share noted before it leaves."""

    def __init__(self, part) -> None:
        self._part = part

    def gather(self, words):
        found = super().gather(words)
        if len(words) > 2:  # a header; what ranks agree on is shorter
            self._part.strike("checked")
        return found

    def reduce(self, share):
        part = self._part
        part.strike("drawn")
        part.journal.note(
            "entered",
            place=list(part.mechanism.place),
            rank=part.rank,
            share=mark_of(share.vector.numpy().tobytes()),
        )
        total = super().reduce(share)
        part.strike("reduced")
        return total
