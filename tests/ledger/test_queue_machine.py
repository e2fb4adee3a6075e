"""Random queueing by two drivers: budgets and order hold, replay is the state."""

from __future__ import annotations

import json
from contextlib import suppress
from fractions import Fraction

from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    rule,
)

from pft_ray.errors import PftError
from tests.ledger.builders import (
    TRAIN,
    VALIDATION,
    make_envelopes,
    make_plan,
    nonce,
)
from tests.ledger.machines import TwoDrivers, run_of

BOTH, ONE = make_plan(), make_plan(evaluation=None)
WHOLE = {TRAIN: (3 * 10**9, 10**14), VALIDATION: (3 * 10**9, 10**14)}
RUN = st.integers(0, 5).map(lambda number: f"run-{number}")
SLOT = st.integers(0, 1)
EPSILON = st.sampled_from([0.5, 1.0, 1.5, 2.5, 3.0, 3.5])


class QueueMachine(TwoDrivers):
    """Two drivers that request, admit, leave, charge and let reservations expire."""

    @rule(run=RUN, slot=SLOT, epsilon=EPSILON, both=st.booleans(),
          limit=st.sampled_from([None, 1.0]))  # fmt: skip
    def request(self, run, slot, epsilon, both, limit) -> None:
        plan = BOTH if both else ONE
        envelopes = make_envelopes(plan, epsilon)
        queue = self.ledgers[slot].queue
        done = self.attempt_call(
            lambda: queue.request(run, plan, envelopes, time_limit_s=limit)
        )
        assert not (done and epsilon > 3)

    @rule(run=RUN, slot=SLOT, epsilon=EPSILON, both=st.booleans())
    def reserve(self, run, slot, epsilon, both) -> None:
        plan = BOTH if both else ONE
        envelopes = make_envelopes(plan, epsilon)
        self.attempt_call(lambda: self.ledgers[slot].reserve(run, plan, envelopes))

    @rule(slot=SLOT)
    def admit(self, slot) -> None:
        self.ledgers[slot].queue.admit()

    @rule(run=RUN, slot=SLOT)
    def leave(self, run, slot) -> None:
        self.attempt_call(lambda: self.ledgers[slot].queue.leave(run))

    @rule(run=RUN, slot=SLOT)
    def give_back(self, run, slot) -> None:
        self.attempt_call(lambda: self.ledgers[slot].release_reservation(run))

    @rule(run=RUN, slot=SLOT)
    def expire(self, run, slot) -> None:
        ledger = self.ledgers[slot]
        self.attempt_call(
            lambda: ledger.queue.expire(run, ledger.run_status(run).epoch)
        )

    @rule(run=RUN, slot=SLOT)
    def charge(self, run, slot) -> None:
        ledger = self.ledgers[slot]
        self.nonces += 1

        def call() -> None:
            status = ledger.run_status(run)
            epoch = status.epoch if status.epoch else ledger.take_epoch(run)
            attempt = status.open_attempt or ledger.open_attempt(run, epoch, 0, "x")
            start = status.next_step or 0
            number = nonce(self.nonces)
            ledger.charge_steps(run, epoch, attempt, start, start + 1, number)

        with suppress(PftError):
            call()

    @rule(slot=SLOT, order=st.sampled_from([("fcfs", 0), ("dpf", 2), ("dpf", 6)]))
    def set_order(self, slot, order) -> None:
        self.ledgers[slot].queue.set_order(*order)

    @invariant()
    def budgets_and_order_hold(self) -> None:
        """Counted from the rows by other code than the ledger's."""
        if not self.ledgers:
            return
        model = _Model()
        for _, kind, text, _, _ in self.rows():
            model.see(kind.decode(), json.loads(text))


class _Model:
    """What rows mean, in plain words: sums, who waits, how much is unlocked."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, tuple[int, int]]] = {}
        self.waiting: list[str] = []
        self.held: set[str] = set()
        self.charged: set[str] = set()
        self.arrivals = dict.fromkeys(WHOLE, 0)
        self.order = {"order": "fcfs", "dpf_n": 0}

    def see(self, kind: str, body: dict) -> None:
        run = body.get("run_id")
        if kind in ("request", "reserve"):
            self.asked[run] = {
                e["block"]: (e["epsilon_units"], e["delta_units"])
                for e in body["envelopes"]
            }
            for block in self.asked[run]:
                self.arrivals[block] += 1
            self.waiting.append(run)
        if kind in ("admit", "reserve"):
            self.refuse_disorder(run)
            self.waiting.remove(run)
            self.held.add(run)
            self.check_sums()
        elif kind == "leave":
            self.waiting.remove(run)
        elif kind in ("expire", "release_reservation"):
            assert run not in self.charged
            self.held.remove(run)
        elif kind in ("grant", "look"):
            assert run in self.held
            self.charged.add(run)
        elif kind == "admission":
            self.order = body

    def taken(self, block: str, part: int, runs: set[str]) -> int:
        return sum(self.asked[run].get(block, (0, 0))[part] for run in runs)

    def check_sums(self) -> None:
        for block, whole in WHOLE.items():
            for part in (0, 1):
                assert self.taken(block, part, self.held) <= whole[part]

    def fits(self, run: str) -> bool:
        for block, amounts in self.asked[run].items():
            unlocked = Fraction(1)
            if self.order["order"] == "dpf":
                arrived = self.arrivals[block]
                unlocked = min(unlocked, Fraction(arrived, self.order["dpf_n"]))
            for part in (0, 1):
                free = unlocked * WHOLE[block][part]
                free -= self.taken(block, part, self.held)
                if amounts[part] > free:
                    return False
        return True

    def hopeless(self, run: str) -> bool:
        return any(
            amounts[part] > WHOLE[block][part] - self.taken(block, part, self.charged)
            for block, amounts in self.asked[run].items()
            for part in (0, 1)
        )

    def rank(self, run: str) -> list[Fraction]:
        return sorted(
            (
                max(Fraction(a, w) for a, w in zip(amounts, WHOLE[block], strict=True))
                for block, amounts in self.asked[run].items()
            ),
            reverse=True,
        )

    def refuse_disorder(self, run: str) -> None:
        """Nobody who shares a block had to come before the one admitted."""
        assert self.fits(run)
        place = self.waiting.index(run)
        for number, other in enumerate(self.waiting):
            if other == run or not set(self.asked[other]) & set(self.asked[run]):
                continue
            if self.order["order"] == "fcfs":
                assert number > place or self.hopeless(other)
            elif self.fits(other):
                mine, theirs = (self.rank(run), place), (self.rank(other), number)
                assert mine < theirs


TestQueueMachine = run_of(QueueMachine)
