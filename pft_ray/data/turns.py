"""Shortens a conversation by whole turns, the oldest first.

A turn is a user's message and all that follows up to the next one: answers, tool
calls and what the tools gave. The system messages at the start always stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pft_ray.data.validate import Message


@dataclass(frozen=True)
class Conversation:
    """A conversation in the parts that are kept or left out whole.

    Attributes:
        system: Messages of the system at the start.
        turns: The turns; the first has no user message if an answer came first.
    """

    system: tuple[Message, ...]
    turns: tuple[tuple[Message, ...], ...]

    def without_oldest(self, num_dropped: int) -> tuple[Message, ...]:
        """Returns the messages that stay when the oldest turns are left out."""
        kept = self.turns[num_dropped:]
        return (*self.system, *(message for turn in kept for message in turn))


def split_turns(messages: Sequence[Message]) -> Conversation:
    """Returns the parts of a conversation, up to its last answer.

    What comes behind the last answer is left out: nothing that is learnt depends on
    it, and it would push out what is.
    """
    answers = [i for i, (role, text) in enumerate(messages) if _is_answer(role, text)]
    ended = tuple(messages[: answers[-1] + 1] if answers else messages)
    num_system = 0
    while num_system < len(ended) and ended[num_system][0] == "system":
        num_system += 1
    starts = [i for i in range(num_system, len(ended)) if ended[i][0] == "user"]
    starts = sorted({num_system, *starts} - {len(ended)})
    ends = [*starts[1:], len(ended)]
    turns = tuple(ended[a:b] for a, b in zip(starts, ends, strict=False))
    return Conversation(ended[:num_system], turns)


def bounded(talk: Conversation, max_messages: int, max_chars: int) -> Conversation:
    """Leaves out what a public number of tokens cannot hold anyway.

    Whole turns go, the oldest first, before the costly part; of a system text or a
    last turn that is too long by itself, the end is cut off.
    """
    system = _cut_end(talk.system, max_messages, max_chars)
    room = max_chars
    places = max_messages
    first = len(talk.turns)
    while first > 0:
        turn = talk.turns[first - 1]
        room -= sum(len(text) for _, text in turn)
        places -= len(turn)
        if (room < 0 or places < 0) and first < len(talk.turns):
            break
        first -= 1
    kept = list(talk.turns[first:])
    if kept:
        kept[-1] = _cut_end(kept[-1], max_messages, max_chars)
    return Conversation(system, tuple(kept))


def fewest_dropped(num_turns: int, fits: Callable[[int], bool]) -> int:
    """Returns how many of the oldest turns must go, by bisection.

    Args:
        num_turns: Turns there are, at least 1; the last one always stays.
        fits: Whether the conversation fits without that many of its oldest turns.
            Asked about numbers above 0 only: the caller knows that all do not fit.
    """
    low, high = 1, max(1, num_turns - 1)
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return min(low, num_turns - 1)


def _cut_end(
    messages: tuple[Message, ...], max_messages: int, max_chars: int
) -> tuple[Message, ...]:
    kept = []
    room = max_chars
    for role, text in messages[:max_messages]:
        if room <= 0:
            break
        kept.append((role, text[:room]))
        room -= len(text)
    return tuple(kept)


def _is_answer(role: str, text: str) -> bool:
    return role == "assistant" and bool(text.strip())
