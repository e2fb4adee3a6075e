"""Finds the damaged page of a file where SQLite only says that there is one.

A walk over the b-trees of SQLite's file format (sqlite.org/fileformat2.html, section
1.6): page kinds, cell pointers, child pointers and payload lengths have to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FILE_HEADER_BYTES = 100
_INTERIOR_INDEX, _INTERIOR_TABLE, _LEAF_INDEX, _LEAF_TABLE = 2, 5, 10, 13
_KINDS = (_INTERIOR_INDEX, _INTERIOR_TABLE, _LEAF_INDEX, _LEAF_TABLE)


def first_bad_page(path: Path, roots: Iterable[int]) -> int | None:
    """Returns the number of a page that cannot be part of a b-tree, from 1.

    Args:
        path: A database file whose log is empty.
        roots: First pages of its tables.

    Returns:
        The first page found, in the order of the walk; None when all fit.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[16:18], "big")
    size = 65536 if size == 1 else size
    if size < 512 or size & (size - 1):
        return 1
    num_pages = len(data) // size
    waiting, seen = [1, *roots], {0}
    while waiting:
        number = waiting.pop(0)
        if number in seen or number > num_pages:
            return number
        seen.add(number)
        content = data[(number - 1) * size : number * size]
        children = _Page(content, _FILE_HEADER_BYTES if number == 1 else 0).children()
        if children is None or not all(0 < child <= num_pages for child in children):
            return number
        waiting += children
    return None


@dataclass(frozen=True)
class _Page:
    content: bytes
    start: int

    def _number(self, offset: int, length: int) -> int:
        return int.from_bytes(self.content[offset : offset + length], "big")

    def children(self) -> list[int] | None:
        """Returns the pages below this one; None when it is not a b-tree page."""
        kind, num_cells = self.content[self.start], self._number(self.start + 3, 2)
        if kind not in _KINDS:
            return None
        is_interior = kind in (_INTERIOR_INDEX, _INTERIOR_TABLE)
        pointers = self.start + (12 if is_interior else 8)
        first = pointers + 2 * num_cells
        cells = [self._number(pointers + 2 * i, 2) for i in range(num_cells)]
        if first > len(self.content) or not all(
            first <= cell < len(self.content) and self._fits(kind, cell)
            for cell in cells
        ):
            return None
        if not is_interior:
            return []
        below = [self._number(cell, 4) for cell in cells]
        return [*below, self._number(self.start + 8, 4)]

    def _fits(self, kind: int, cell: int) -> bool:
        """Whether the part of a cell that lies in this page ends inside it."""
        if kind == _INTERIOR_TABLE:
            return cell + 4 < len(self.content)
        length, at = self._varint(cell + (4 if kind == _INTERIOR_INDEX else 0))
        if kind == _LEAF_TABLE:
            _, at = self._varint(at)
        usable = len(self.content)
        least = (usable - 12) * 32 // 255 - 23
        most = usable - 35 if kind == _LEAF_TABLE else (usable - 12) * 64 // 255 - 23
        if length > most:
            local = least + (length - least) % (usable - 4)
            length = (local if local <= most else least) + 4
        return at + length <= usable

    def _varint(self, at: int) -> tuple[int, int]:
        """Returns a variable-length integer and the offset after it."""
        value = 0
        for position in range(9):
            byte = self.content[at] if at < len(self.content) else 0
            at += 1
            if position == 8:
                return value << 8 | byte, at
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                break
        return value, at
