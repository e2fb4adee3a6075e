"""The waiting queue of a ledger: who wants to reserve, and who may."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from pft_ray.crypto import new_token
from pft_ray.errors import InputError, MustWaitError
from pft_ray.ledger import bodies
from pft_ray.ledger.admission import Order, ahead, is_possible, missing, next_job
from pft_ray.ledger.entries import natural
from pft_ray.ledger.queue_rules import can_expire, refuse_impossible
from pft_ray.ledger.reserve_rules import check_budgets, check_job
from pft_ray.ledger.state import check
from pft_ray.ledger.turns import (
    amounts_of,
    check_arrival,
    supplies_for,
    wholes_of,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.admission import Job, Missing, Supply
    from pft_ray.ledger.chain import Chain
    from pft_ray.ledger.entries import Body, Position
    from pft_ray.ledger.shares import Part
    from pft_ray.ledger.state import LedgerState

_MS = 1000
_MAX_S = 10 * 366 * 86_400


@dataclass(frozen=True)
class WaitingRun:
    """A run in the queue.

    Attributes:
        run_id: The run.
        name: Its public name.
        place: From 1, in the order in which runs would be looked at now.
        dominant_share: Its largest share of a block's whole budget, from 0 to 1.
        blocks: The blocks that it demands.
        num_ahead: Runs that have to be admitted before it.
        waits_for: Block, part and amount that lack most; None when it fits.
        is_possible: False when a block was used up beyond its demand meanwhile.
    """

    run_id: str
    name: str
    place: int
    dominant_share: float
    blocks: tuple[str, ...]
    num_ahead: int
    waits_for: dict[str, Any] | None
    is_possible: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON."""
        return {**vars(self), "blocks": list(self.blocks)}


def time_limit_ms(time_limit_s: float | None) -> int:
    """Returns a time limit in whole milliseconds, rounded up; 0 for None.

    Raises:
        InputError: It is no positive, finite number, or above ten years.
    """
    value: Any = time_limit_s
    if value is None:
        return 0
    number = 0.0 if isinstance(value, bool) or not _is_real(value) else float(value)
    if not 0 < number <= _MAX_S:
        raise InputError(
            f"The time limit is {value!r} s.",
            "Give a number of seconds above 0, at most ten years.",
        )
    return max(1, math.ceil(number * _MS))


def _is_real(value: Any) -> bool:
    return isinstance(value, Real)


class LedgerQueue:
    """Requests for reservations of one ledger, admitted in its order.

    Args:
        chain: The ledger's chain.

    Guarantee:
        What is admitted is a reservation like any other: it is refused wherever
        :meth:`Ledger.reserve` would refuse, so queueing never overdraws a block.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    # -- joining, admission, leaving --------------------------------------------

    def request(
        self,
        run_id: str,
        plan: Plan,
        envelopes: Sequence[Part],
        *,
        time_limit_s: float | None = None,
        wait: bool = True,
    ) -> str:
        """Asks for all envelopes of a new run; the run waits when it is not its turn.

        Args:
            run_id: Never used before.
            plan: What the run will do; envelopes pay for its events.
            envelopes: One a block and purpose, at least one for training.
            time_limit_s: How long the reservation may stay unused once it is made;
                None for ever.
            wait: Join the queue when the reservation cannot be made at once.

        Returns:
            ``reserved`` or ``waiting``.

        Raises:
            BudgetError: No waiting would help; or, without ``wait``, a block has not
                enough left now (then nothing of the run stays in the queue).
            MustWaitError: Without ``wait``: the order lets others go first.
            InputError: The run exists, an envelope does not pay for the plan, or the
                time limit is not usable.
        """
        body = bodies.reservation(run_id, run_id, plan, envelopes)
        body["time_limit_ms"] = time_limit_ms(time_limit_s)

        def build(state: LedgerState) -> Body:
            if not wait:
                asked = check_job(state, body)
                check_budgets(state, asked)
                check_arrival(state, run_id, asked)
            return body

        self._chain.append("request", build)
        self.admit()
        if wait:
            return self.status(run_id)
        return self._reserved_or_gone(run_id)

    def _reserved_or_gone(self, run_id: str) -> str:
        """Leaves the queue when others went first between request and admission."""
        if self._leave_if_waiting(run_id):
            raise MustWaitError(
                "Other runs went first in the same moment.",
                "Try again, or join the queue with --wait.",
                {"run_id": run_id},
            )
        return self.status(run_id)

    def status(self, run_id: str) -> str:
        """Returns the run's status: ``waiting`` while it is in the queue.

        Raises:
            UnknownRunError: The ledger does not know the run.
        """
        with self._chain.reading() as state:
            return state.run(run_id).status

    def admit(self) -> tuple[str, ...]:
        """Admits every waiting run whose turn has come, each in one record.

        Returns:
            The runs admitted, in order; empty when nobody could be.
        """
        admitted: list[str] = []

        def build(state: LedgerState) -> Body | None:
            job = _next(state)
            if job is None:
                return None
            # Fresh bits, as in every reservation: see bodies.reservation.
            return {"run_id": job.name, "blind": new_token().hex()}

        while True:
            with self._chain.reading() as state:
                if _next(state) is None:
                    return tuple(admitted)  # without taking the write lock
            entry = self._chain.append("admit", build)
            if entry is None:
                return tuple(admitted)
            admitted.append(entry.body["run_id"])

    def leave(self, run_id: str) -> Position:
        """Takes a waiting run out of the queue for good.

        Raises:
            UnknownRunError: The ledger does not know the run.
            SettledError: It does not wait: it left, or it was admitted.
        """
        entry = self._chain.append("leave", lambda _: {"run_id": run_id})
        assert entry is not None  # the body is never None
        return entry.position

    def give_up(self, run_id: str) -> None:
        """Leaves the queue, or gives back what was admitted and not charged."""
        if self._leave_if_waiting(run_id):
            return

        def build(state: LedgerState) -> Body | None:
            run = state.runs.get(run_id)
            if run is None or run.is_final or run.is_charged:
                return None
            return {"run_id": run_id}

        self._chain.append("release_reservation", build)

    def _leave_if_waiting(self, run_id: str) -> bool:
        entry = self._chain.append(
            "leave",
            lambda state: {"run_id": run_id} if run_id in state.waiting else None,
        )
        return entry is not None

    def check_possible(self, run_id: str) -> None:
        """Raises when waiting no longer helps a run.

        Raises:
            BudgetError: A block was used up beyond what the run demands.
        """
        with self._chain.reading() as state:
            if run_id in state.waiting:
                refuse_impossible(state, state.waiting[run_id])

    def check_takeable(self, run_id: str) -> None:
        """Raises what :meth:`Ledger.take_epoch` would raise now; takes nothing.

        Raises:
            ReservationExpiredError: The reservation passed its time limit.
            ResumeError: The run waits, ended, left or gave its reservation back.
        """
        with self._chain.reading() as state:
            epoch = state.run(run_id).epoch + 1
            check(state, "epoch", {"run_id": run_id, "epoch": epoch})

    # -- the order ----------------------------------------------------------------

    def order(self) -> Order:
        """Returns the ledger's admission order."""
        with self._chain.reading() as state:
            return state.order

    def set_order(self, order: str, dpf_n: int = 0) -> bool:
        """Sets the admission order, also for those who wait already.

        Args:
            order: ``fcfs`` or ``dpf``.
            dpf_n: Arrivals that unlock a block's whole budget; with ``dpf`` only.

        Returns:
            True when it is another than before.

        Raises:
            InputError: The order or its N is not usable.
        """
        wanted = Order(order, natural(dpf_n, "dpf_n"))
        body: Body = {"order": wanted.kind, "dpf_n": wanted.dpf_n}
        entry = self._chain.append(
            "admission", lambda state: None if state.order == wanted else body
        )
        return entry is not None

    def waiting(self, run_id: str | None = None) -> list[WaitingRun]:
        """Returns who waits, the next to be looked at first; of one run when named."""
        with self._chain.reading() as state:
            jobs = list(state.waiting.values())
            supplies = supplies_for(state, jobs)
            ranked = jobs
            if state.order.dpf_n:
                ranked = sorted(jobs, key=lambda job: job.shares)  # stable: by arrival
            return [
                _row(state, job, place, supplies)
                for place, job in enumerate(ranked, start=1)
                if run_id in (None, job.name)
            ]

    # -- time limits ----------------------------------------------------------------

    def limited(self) -> dict[tuple[str, int], float]:
        """Returns the time limits of reservations that nothing was charged to.

        Returns:
            (run, its epoch) to seconds.
        """
        with self._chain.reading() as state:
            return {
                (run.run_id, run.epoch): run.time_limit_ms / _MS
                for run in state.runs.values()
                if can_expire(run)
            }

    def expire(self, run_id: str, epoch: int) -> bool:
        """Gives a reservation back whose time limit has passed unused.

        Args:
            run_id: The run.
            epoch: Its epoch when the limit began; a newer one begins it anew.

        Returns:
            False when it was charged, settled or taken up meanwhile.
        """

        def build(state: LedgerState) -> Body | None:
            run = state.run(run_id)
            if run.epoch != epoch or not can_expire(run):
                return None
            return {"run_id": run_id}

        return self._chain.append("expire", build) is not None


def _next(state: LedgerState) -> Job | None:
    jobs = list(state.waiting.values())
    return next_job(state.order, jobs, supplies_for(state, jobs)) if jobs else None


def _row(
    state: LedgerState, job: Job, place: int, supplies: dict[str, Supply]
) -> WaitingRun:
    found = missing(state.order, job, supplies)
    others = ahead(state.order, job, state.waiting.values(), supplies)
    return WaitingRun(
        run_id=job.name,
        name=state.runs[job.name].name,
        place=place,
        dominant_share=float(job.shares[0]),
        blocks=tuple(map(words_of, job.demand)),
        num_ahead=len(others),
        waits_for=None if found is None else _lack(state, found),
        is_possible=is_possible(job, supplies),
    )


def _lack(state: LedgerState, found: Missing) -> dict[str, Any]:
    """Returns block, part and amount of a lack, in the part's own measure."""
    amount = amounts_of(state, found.block)[found.part]
    whole = wholes_of(state, found.block)[found.part]
    return {
        "block": words_of(found.block),
        "part": amount.name,
        "missing": amount.value(math.ceil(found.lacks * whole)),
        "share": float(found.lacks),
    }
