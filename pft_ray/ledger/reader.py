"""What can be asked of a ledger: every answer is as new as the store."""

from __future__ import annotations

from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.errors import InputError
from pft_ray.ledger.anchor import check_anchor
from pft_ray.ledger.entries import Entry, Position, read_entry
from pft_ray.ledger.status import (
    BlockStatus,
    RunStatus,
    block_status,
    run_ids_of,
    run_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pft_ray.ledger.anchor import Anchor
    from pft_ray.ledger.chain import Chain
    from pft_ray.ledger.observers import Observers
    from pft_ray.ledger.records import Dataset
    from pft_ray.ledger.store import Source


def _block_of(entry: Entry) -> str | None:
    """Returns the block that an entry makes or changes, if it does."""
    if entry.kind in ("block", "filter_block"):
        return str(entry.body["name"])
    return str(entry.body["block"]) if entry.kind == "move" else None


def _runs_of(entry: Entry) -> set[str]:
    """Returns the runs that an entry is about."""
    if entry.kind == "joint_reserve":
        return {run["run_id"] for run in entry.body["runs"]}
    return {entry.body.get("run_id", "")}


class LedgerReader:
    """The questions a ledger answers. Nothing here appends."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @property
    def observers(self) -> Observers:
        """Who is told of what this object charges and is refused."""
        return self._chain.observers

    @property
    def source(self) -> Source:
        """The ledger's file or database."""
        return self._chain.store.source

    @property
    def path(self) -> Path:
        """The ledger's file.

        Raises:
            InputError: The ledger is in a database.
        """
        if not isinstance(self.source, Path):
            raise InputError(f"The ledger is in {self.source}, not in a file.")
        return self.source

    @property
    def ledger_id(self) -> str:
        """The random id that the first entry gave the ledger, hex."""
        with self._chain.reading() as state:
            return state.ledger_id

    def position(self) -> Position:
        """Returns sequence and root of the last entry."""
        with self._chain.reading() as state:
            return state.position

    def reservation_position(self, run_id: str) -> Position:
        """Returns what a report may show: the reservation's number and its root.

        The number counts reservations only, so that grants cannot be read from it.

        Raises:
            InputError: The run has no reservation: it waits, or left the queue.
        """
        with self._chain.reading() as state:
            run = state.run(run_id)
            if not run.reservation_sequence:
                raise InputError(
                    f"Run {run_id!r} has no reservation.",
                    "`pft budget queue` shows whether it waits for one.",
                    {"run_id": run_id, "status": run.status},
                )
            return Position(run.reservation_sequence, run.reservation.root)

    def dataset(self, name: str) -> Dataset:
        """Returns a registered data set.

        Raises:
            UnknownBlockError: There is no such data set.
        """
        with self._chain.reading() as state:
            return deepcopy(state.dataset(name))

    def datasets(self) -> list[Dataset]:
        """Returns the registered data sets in order of registration."""
        with self._chain.reading() as state:
            return deepcopy(list(state.datasets.values()))

    def block_status(self, name: str) -> BlockStatus:
        """Returns what block ``name`` holds, what of it is reserved, used and left.

        Raises:
            UnknownBlockError: There is no such block.
        """
        with self._chain.reading() as state:
            return block_status(state, state.block(name))

    def blocks(self) -> list[BlockStatus]:
        """Returns the status of all blocks in order of creation."""
        with self._chain.reading() as state:
            return [block_status(state, block) for block in state.blocks.values()]

    def run_status(self, run_id: str) -> RunStatus:
        """Returns what was charged to a run and where it stands.

        Raises:
            InputError: The ledger holds no reservation of that run.
        """
        with self._chain.reading() as state:
            return run_status(state.run(run_id))

    def runs(self) -> list[RunStatus]:
        """Returns all runs in order of reservation."""
        with self._chain.reading() as state:
            return [run_status(run) for run in state.runs.values()]

    def released(self, run_id: str) -> dict[int, dict[str, Any]]:
        """Returns the stored values by look: shown again, never drawn again."""
        with self._chain.reading() as state:
            return deepcopy(state.run(run_id).released)

    def history(
        self, limit: int = 50, *, block: str | None = None, run_id: str | None = None
    ) -> list[Entry]:
        """Returns the newest entries first, of one block or run when named.

        Raises:
            UnknownBlockError: There is no such block.
            InputError: There is no such run.
        """
        found: list[Entry] = []
        with self._chain.reading() as state:
            run_ids = None
            if run_id is not None:
                run_ids = {state.run(run_id).run_id}
            if block is not None:
                of_block = set(run_ids_of(state, state.block(block).name))
                run_ids = of_block if run_ids is None else run_ids & of_block
            with closing(self._chain.store.rows_down()) as rows:
                for row in rows:
                    if len(found) >= limit:
                        break
                    entry = read_entry(row)
                    is_block = _block_of(entry) == block
                    if (
                        run_ids is None
                        or run_ids & _runs_of(entry)
                        or (is_block and run_id is None)
                    ):
                        found.append(entry)
        return found

    def require(self, anchors: Iterable[Anchor]) -> None:
        """Refuses a ledger that lacks a position somebody saw.

        Raises:
            LedgerBehindError: The ledger ends before an anchor.
            VerificationError: It has another id, or another history there.
        """
        with self._chain.reading() as state:
            for anchor in anchors:
                if anchor.counts == "reservations":
                    last = state.num_reservations
                    root = state.reservation_root(anchor.sequence)
                else:
                    last = state.sequence
                    root = self._root_at(anchor.sequence)
                check_anchor(anchor, state.ledger_id, last, root)

    def _root_at(self, sequence: int) -> str | None:
        with closing(self._chain.store.rows_from(sequence)) as rows:
            row = next(rows, None)
        return read_entry(row).hash if row and row[0] == sequence else None
