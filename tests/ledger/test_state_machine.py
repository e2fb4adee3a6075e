"""Random sequences of calls: budgets hold, and the running state is the replay."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
)

from tests.ledger.builders import (
    TRAIN,
    VALIDATION,
    make_envelopes,
    make_plan,
    nonce,
    open_ledger,
)
from tests.ledger.machines import TwoDrivers, run_of

PLAN = make_plan()
RUN = st.integers(0, 3).map(lambda number: f"run-{number}")
SLOT = st.integers(0, 1)


class LedgerMachine(TwoDrivers):
    """Two open ledgers on one file, used as two drivers would."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}

    @rule(run=RUN, slot=SLOT, epsilon=st.sampled_from([0.1, 0.75, 1.0, 1.5, 3.0]))
    def reserve(self, run, slot, epsilon) -> None:
        self.attempt_call(
            lambda: self.ledgers[slot].reserve(run, PLAN, make_envelopes(PLAN, epsilon))
        )

    @rule(run=RUN, slot=SLOT)
    def give_back(self, run, slot) -> None:
        done = self.attempt_call(lambda: self.ledgers[slot].release_reservation(run))
        assert not (done and self.acknowledged.get(run))

    @rule(run=RUN, slot=SLOT)
    def take(self, run, slot) -> None:
        def call() -> None:
            self.epochs[run] = self.ledgers[slot].take_epoch(run)

        self.attempt_call(call)

    @rule(run=RUN, slot=SLOT, start=st.integers(0, 20), stale=st.booleans())
    def open_attempt(self, run, slot, start, stale) -> None:
        epoch = self.epochs.get(run, 0) - stale

        def call() -> None:
            number = self.ledgers[slot].open_attempt(run, max(epoch, 0), start, "x")
            assert not stale
            self.attempts[run] = number

        self.attempt_call(call)

    @precondition(lambda self: self.attempts)
    @rule(
        slot=SLOT,
        data=st.data(),
        size=st.integers(0, 5),
        ahead=st.integers(-2, 3),
        stale=st.booleans(),
        again=st.booleans(),
    )
    def charge(self, slot, data, size, ahead, stale, again) -> None:
        run = data.draw(st.sampled_from(sorted(self.attempts)))
        status = self.ledgers[slot].run_status(run)
        start = max((status.next_step or 0) + ahead, 0)
        self.nonces += 1
        ledger, epoch = self.ledgers[slot], max(self.epochs[run] - stale, 0)

        def call() -> None:
            arguments = (run, epoch, self.attempts[run], start, start + size)
            first = ledger.charge_steps(*arguments, nonce(self.nonces))
            if again:
                assert ledger.charge_steps(*arguments, nonce(self.nonces)) == first

        if self.attempt_call(call):
            assert not stale
            assert start >= (status.next_step or 0)
            self.acknowledged[run] = self.acknowledged.get(run, 0) + size

    @rule(run=RUN, slot=SLOT, stale=st.booleans())
    def look(self, run, slot, stale) -> None:
        epoch = max(self.epochs.get(run, 0) - stale, 0)

        def call() -> None:
            number = self.ledgers[slot].charge_look(run, epoch, "somewhen")
            self.ledgers[slot].store_release(run, epoch, number, {"counts": [number]})

        self.attempt_call(call)

    @rule(
        run=RUN,
        slot=SLOT,
        status=st.sampled_from(["completed", "interrupted", "failed"]),
    )
    def end(self, run, slot, status) -> None:
        epoch = self.epochs.get(run, 0)
        self.attempt_call(lambda: self.ledgers[slot].end_run(run, epoch, status, 0))

    @rule(slot=SLOT)
    def reopen(self, slot) -> None:
        self.ledgers[slot].close()
        self.ledgers[slot] = open_ledger(self.folder)

    def bodies(self, *kinds: bytes) -> list[tuple[bytes, dict]]:
        return [
            (kind, json.loads(text))
            for _, kind, text, _, _ in self.rows()
            if kind in kinds
        ]

    @invariant()
    def blocks_are_never_overdrawn(self) -> None:
        """Counted from the rows by other code than the ledger's."""
        if not self.ledgers:
            return
        held: dict[str, list[dict]] = {}
        for kind, body in self.bodies(b"reserve", b"release_reservation"):
            if kind == b"reserve":
                assert body["run_id"] not in held
                held[body["run_id"]] = body["envelopes"]
            else:
                held[body["run_id"]] = []
        for block in (TRAIN, VALIDATION):
            envelopes = [e for run in held.values() for e in run if e["block"] == block]
            assert sum(e["epsilon_units"] for e in envelopes) <= 3 * 10**9
            assert sum(e["delta_units"] for e in envelopes) <= 10**14

    @invariant()
    def runs_stay_within_their_plan(self) -> None:
        """No grant or look beyond what is paid for; what was acknowledged is there."""
        if not self.ledgers:
            return
        charged: dict[str, int] = dict.fromkeys(self.acknowledged, 0)
        looks: dict[str, int] = {}
        for _, body in self.bodies(b"grant"):
            steps = body["stop"] - body["start"]
            charged[body["run_id"]] = charged.get(body["run_id"], 0) + steps
            assert body["charged"] == charged[body["run_id"]]
        for _, body in self.bodies(b"look"):
            looks[body["run_id"]] = looks.get(body["run_id"], 0) + 1
        assert all(steps <= PLAN.num_steps_max for steps in charged.values())
        assert all(number <= 3 for number in looks.values())
        assert charged == self.acknowledged


TestLedgerMachine = run_of(LedgerMachine)
