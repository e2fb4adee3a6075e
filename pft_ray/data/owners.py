"""Which owner a record belongs to: by its own value and a public rule alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from pft_ray.data.split import split_hash

if TYPE_CHECKING:
    from pft_ray.data.prepare import Records

_TWO_64 = 1 << 64


@dataclass(frozen=True)
class OwnerRule:
    """The public rule. All of it is declared.

    Attributes:
        names: The owners, in the order in which they are numbered.
        sizes: Declared training units of each.
        salt: Public salt of a hash of the value, whose range is cut in proportion to
            the sizes; None: the value is the owner's name.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    salt: str | None = None

    def number(self, value: str) -> int | None:
        """Returns the owner of a record with this value; None when there is none.

        Guarantee:
            The owner is a function of the record's own value and public numbers:
            adding or removing a record moves no other to another owner.
        """
        if self.salt is None:
            return self.names.index(value) if value in self.names else None
        place = split_hash(f"owner/{self.salt}", value.encode())
        total = sum(self.sizes)
        for number, end in enumerate(accumulate(self.sizes)):
            if Fraction(place, _TWO_64) < Fraction(end, total):
                return number
        return None

    def cut(self, number: int, column: str) -> dict[str, Any]:
        """Returns the public cut of one owner, as the predicate of its block has it.

        Args:
            number: The owner.
            column: The column of the value.

        Guarantee:
            The cuts of two owners hold no value both: the names differ, or the parts
            of the hash's range do not overlap.
        """
        cut: dict[str, Any] = {"name": self.names[number], "field": column}
        if self.salt is None:
            return cut
        ends = [0, *accumulate(self.sizes)]
        return cut | {
            "salt": self.salt,
            "of": ends[-1],
            "from": ends[number],
            "to": ends[number + 1],
        }


def with_owners(records: Records, rule: OwnerRule) -> tuple[Records, int]:
    """Returns the records that have an owner, numbered, and how many have none.

    A record of no declared owner takes part with a contribution of zero.
    """
    assert records.owner_values is not None
    numbers = [rule.number(value) for value in records.owner_values]
    kept = [place for place, number in enumerate(numbers) if number is not None]
    owners = np.asarray([n for n in numbers if n is not None], dtype=np.int64)
    taken = records.take(np.asarray(kept, dtype=np.int64))
    return replace(taken, owners=owners), len(numbers) - len(kept)
