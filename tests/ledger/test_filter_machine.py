"""Random sequences of calls on filter blocks, counted by code that is not the ledger's.

What is charged and what is held never exceed what a block, or a purpose of it, has;
what was charged never becomes less; the running state is the replay.
"""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from pft_ray.errors import PftError
from pft_ray.ledger import verify
from tests.ledger.builders import make_plan, nonce
from tests.ledger.filter_builders import (
    FILTER,
    LOOKS,
    add_filter_blocks,
    make_shares,
    purpose,
)
from tests.ledger.machines import TwoDrivers, run_of

PLANS = [make_plan(), make_plan(noise_multiplier=0.8), make_plan(sample_rate=0.2)]
RUN = st.integers(0, 4).map(lambda number: f"run-{number}")
PURPOSE = st.sampled_from(["training", "tuning", "training/epoch-1", "unassigned"])
SLOT = st.integers(0, 1)


class Books:
    """The rows counted by hand: spent, held and allotted by (block, purpose)."""

    def __init__(self, rows: list[tuple]) -> None:
        self.allotted: dict[tuple[str, str], int] = {}
        self.spent: dict[tuple[str, str], int] = {}
        self.rho: dict[str, int] = {}
        self._left: dict[str, dict[tuple[str, str], list[int]]] = {}
        for _, kind, text, _, _ in rows:
            body = json.loads(text)
            getattr(self, f"_{kind.decode()}", lambda _: None)(body)

    @property
    def held(self) -> dict[tuple[str, str], int]:
        total: dict[tuple[str, str], int] = {}
        for parts in self._left.values():
            for key, (number, each) in parts.items():
                total[key] = total.get(key, 0) + number * each
        return total

    def _filter_block(self, body) -> None:
        self.rho[body["name"]] = body["rho_units"]
        for name, units in body["purposes"].items():
            self.allotted[body["name"], name] = units
        rest = body["rho_units"] - sum(body["purposes"].values())
        self.allotted[body["name"], "unassigned"] = rest

    def _move(self, body) -> None:
        block, units = body["block"], body["rho_units"]
        self.allotted[block, body["source"]] -= units
        target = (block, body["target"])
        self.allotted[target] = self.allotted.get(target, 0) + units

    def _reserve(self, body) -> None:
        self._left[body["run_id"]] = {
            (share["block"], share["purpose"]): [
                share["event"]["count"],
                share["rho_units"] // share["event"]["count"],
            ]
            for share in body["envelopes"]
        }

    def _pay(self, run: str, block: str, number: int) -> None:
        for key, part in self._left[run].items():
            if key[0] == block:
                part[0] -= number
                self.spent[key] = self.spent.get(key, 0) + number * part[1]

    def _grant(self, body) -> None:
        self._pay(body["run_id"], FILTER, body["stop"] - body["start"])

    def _look(self, body) -> None:
        self._pay(body["run_id"], LOOKS, 1)

    def _end(self, body) -> None:
        if body["status"] in ("completed", "budget_exhausted"):
            self._left.pop(body["run_id"], None)

    def _release_reservation(self, body) -> None:
        self._left.pop(body["run_id"], None)


class FilterMachine(TwoDrivers):
    """Two open ledgers on one file, used as two drivers would."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[str, int] = {}
        self.spent: dict[tuple[str, str], int] = {}

    def add_more(self) -> None:
        add_filter_blocks(self.ledgers[0])

    def teardown(self) -> None:
        if self.ledgers:
            verify(self.ledgers[0])
        super().teardown()

    @rule(run=RUN, slot=SLOT, plan=st.sampled_from(PLANS), path=PURPOSE)
    def reserve(self, run, slot, plan, path) -> None:
        self.attempt_call(
            lambda: self.ledgers[slot].reserve(run, plan, make_shares(plan, path))
        )

    @rule(run=RUN, slot=SLOT, again=st.booleans())
    def run_on(self, run, slot, again) -> None:
        """Takes the run and charges its next steps."""
        ledger = self.ledgers[slot]

        def call() -> None:
            if again or run not in self.epochs:
                self.epochs[run] = ledger.take_epoch(run)
                ledger.open_attempt(run, self.epochs[run], 0, "x")
            status = ledger.run_status(run)
            start = status.next_step or 0
            self.nonces += 1
            ledger.charge_steps(
                run,
                self.epochs[run],
                status.num_attempts,
                start,
                start + 2,
                nonce(self.nonces),
            )

        # Taking a run appends rows of its own.
        with suppress(PftError):
            call()

    @rule(run=RUN, slot=SLOT)
    def look(self, run, slot) -> None:
        epoch = self.epochs.get(run, 0)
        self.attempt_call(
            lambda: self.ledgers[slot].charge_look(run, epoch, "somewhen")
        )

    @rule(
        run=RUN,
        slot=SLOT,
        status=st.sampled_from(["completed", "interrupted", "budget_exhausted"]),
    )
    def end(self, run, slot, status) -> None:
        epoch = self.epochs.get(run, 0)
        self.attempt_call(lambda: self.ledgers[slot].end_run(run, epoch, status, 0))

    @rule(run=RUN, slot=SLOT)
    def give_back(self, run, slot) -> None:
        self.attempt_call(lambda: self.ledgers[slot].release_reservation(run))

    @rule(slot=SLOT, source=PURPOSE, goal=PURPOSE, data=st.data())
    def move(self, slot, source, goal, data) -> None:
        try:
            free = purpose(self.ledgers[slot], source).remaining_rho_units
        except ValueError:  # no such purpose yet
            free = 0
        units = data.draw(st.integers(0, free + 2))
        self.attempt_call(
            lambda: self.ledgers[slot].filters.move(FILTER, source, goal, units)
        )

    @invariant()
    def nothing_is_overdrawn(self) -> None:
        if not self.ledgers:
            return
        books = Books(self.rows())
        held = books.held
        for key, allotted in books.allotted.items():
            assert books.spent.get(key, 0) + held.get(key, 0) <= allotted
        for block, rho in books.rho.items():
            used = [*books.spent.items(), *held.items()]
            assert sum(n for (name, _), n in used if name == block) <= rho
            allotted = [n for (name, _), n in books.allotted.items() if name == block]
            assert sum(allotted) == rho
        for key, units in self.spent.items():
            assert books.spent.get(key, 0) >= units
        self.spent = books.spent
        for block in (FILTER, LOOKS):
            for item in self.ledgers[0].block_status(block).filter.purposes:
                key = (block, item.name)
                assert item.rho_units == books.allotted[key]
                assert item.spent_rho_units == books.spent.get(key, 0)
                assert item.reserved_rho_units == held.get(key, 0)


TestFilterMachine = run_of(FilterMachine, max_examples=30)
