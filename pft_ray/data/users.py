"""Units that are users: all records that share a value of the user column.

What is done to a user's records depends on that user's own records alone, so that
adding or removing a user changes no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pft_ray.crypto import keyed_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pft_ray.data.prepare import Records
    from pft_ray.data.tokens import TokenTable

DIGEST_BYTES = 16


@dataclass(frozen=True)
class UserGroups:
    """Which rows of a table belong to which user; the rows are sorted by user.

    Attributes:
        digests: uint8 (U, 16), one distinct row a user, increasing.
        starts: int64 (U + 1,); user u has the rows starts[u] to starts[u + 1].
    """

    digests: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digests)

    def rows(self, user: int) -> NDArray[np.int64]:
        """Returns the rows of one user."""
        return np.arange(self.starts[user], self.starts[user + 1], dtype=np.int64)


def user_digests(users: list[str], fingerprint_key: bytes) -> NDArray[np.uint8]:
    """Returns the keyed digest of each record's user, uint8 (n, 16)."""
    rows = [keyed_digest(fingerprint_key, b"unit/user", u.encode()) for u in users]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def cap_records(records: Records, most: int) -> Records:
    """Keeps at most ``most`` records of every user: those of the smallest digests.

    A digest is keyed, so the choice is as good as random and the same in every run.

    Guarantee:
        Which records of a user stay depends on that user's records alone.
    """
    assert records.users is not None
    order = np.lexsort((*records.digests.T[::-1], *records.users.T[::-1]))
    kept = order[_rank_in_user(records.users[order]) < most]
    return records.take(np.sort(kept))


def group_users(table: TokenTable) -> tuple[TokenTable, UserGroups]:
    """Returns the table sorted by user, and which rows each user has."""
    assert table.users is not None
    order = np.lexsort((*table.digests.T[::-1], *table.users.T[::-1]))
    ordered = table.take(order.astype(np.int64))
    assert ordered.users is not None
    first = np.flatnonzero(_rank_in_user(ordered.users) == 0)
    starts = np.append(first, len(ordered)).astype(np.int64)
    return ordered, UserGroups(ordered.users[first], starts)


def _rank_in_user(users: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the place of each row among the rows of its user, from 0."""
    places = np.arange(len(users))
    new = np.ones(len(users), dtype=bool)
    new[1:] = (users[1:] != users[:-1]).any(axis=1)
    return places - np.maximum.accumulate(np.where(new, places, 0))
