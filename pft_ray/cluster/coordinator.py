"""The privacy coordinator: owns a run's ledger line and hands out grants.

A plain class, tested without Ray; :mod:`pft_ray.cluster.actors` makes it an actor.
It is a cache of the ledger: a new one replays the ledger, takes the next fencing
epoch, and starts without any attempt, because attempt keys live in memory only.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.cluster.attempts import Attempt
from pft_ray.cluster.faults import WORKER_RESTART, FaultCount
from pft_ray.cluster.ledger_place import open_place
from pft_ray.cluster.resizes import Resizes
from pft_ray.cluster.step_keys import check_roster
from pft_ray.crypto import derive_key, new_key
from pft_ray.errors import AttemptClosedError, BudgetExhausted, GrantRefusedError
from pft_ray.ledger import BudgetEvent, Position, ReservationClock
from pft_ray.ledger.anchor import read_anchors, write_anchor
from pft_ray.telemetry import EventFile
from pft_ray.training.loop import GrantReply, LookReply

if TYPE_CHECKING:
    from pft_ray.training.step import StepKeys

_ALL = 1 << 40


@dataclass(frozen=True)
class CoordinatorConfig:
    """Where a coordinator finds its ledger, leaves its anchor and tells of charges.

    Ray may store it.
    """

    ledger_url: str = field(repr=False)
    keys_dir: str
    run_id: str
    anchor_path: str
    events_path: str = ""
    park_timeout_s: float = 60.0


class Coordinator:
    """Grants steps and looks of one run, each charged before its keys exist.

    Guarantee:
        A reply that carries keys is sent only after the ledger holds the charge.
        Keys are derived from a fresh key of the attempt, which is never stored, so
        no key of a charged step can be made twice: not by a restarted coordinator,
        not for another worker incarnation.
    """

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config
        self._ledger = open_place(config.ledger_url, config.keys_dir)
        events = EventFile(Path(config.events_path)) if config.events_path else None
        if events is not None:
            self._ledger.observers.subscribe(events)
        self._time_limits = ReservationClock(self._ledger.queue, time.monotonic)
        self._require_anchor()
        self._epoch = self._ledger.take_epoch(config.run_id)
        self._ledger_id = self._ledger.ledger_id
        status = self._ledger.run_status(config.run_id)
        self._plan = status.plan
        # Nobody else charges this run while the epoch is ours; the ledger checks.
        self._num_charged = status.num_steps_charged
        self._attempt: Attempt | None = None
        self._lock = threading.Lock()
        self._stop = False
        self._looks: dict[int, int] = {}
        self._faults = FaultCount(
            str(entry.body["reason"])
            for entry in self._ledger.history(_ALL, run_id=config.run_id)
            if entry.kind == "attempt"
        )
        self._resizes = Resizes(self._plan, config.park_timeout_s, events)
        self._released: dict[int, int] = {}
        self._step = 0
        self._remember(self._ledger.position())

    def _require_anchor(self) -> None:
        """Refuses a ledger that is behind the anchor: it was rolled back.

        A coordinator that comes back by itself on an older copy would grant again
        what was spent.
        """
        anchor = Path(self._config.anchor_path)
        if anchor.exists():
            self._ledger.require(read_anchors(anchor))

    def _remember(self, position: Position, *, durable: bool = True) -> None:
        """Writes a position of the ledger to the anchor, which lies with the runs."""
        anchor = Path(self._config.anchor_path)
        write_anchor(anchor, self._ledger_id, position, durable=durable)

    # -- attempts and grants ----------------------------------------------------

    def open_attempt(self, tokens: list[bytes], start: int, reason: str) -> int:
        """Opens an attempt for a roster and returns its number.

        Args:
            tokens: The 16-byte incarnation token of each rank, in rank order.
            start: Steps that the workers' parameters already have.
            reason: start, resume, void-step or coordinator-restart.

        Raises:
            RunFailedError: The second unplanned end after the same charged step.
            GrantRefusedError: Tokens repeat, or there are more ranks than shares, or
                fewer than the plan tolerates.
        """
        with self._lock:
            if len(set(tokens)) != len(tokens):
                raise GrantRefusedError("Two ranks have the same incarnation token.")
            check_roster(self._plan, len(tokens))
            current = self._attempt
            if current is not None and current.is_repeated(tokens, start):
                return current.number
            if current is not None and self._resizes.pass_on(current, tokens, start):
                self._faults.forget_cause()
                return current.number
            reason, place = self._faults.name(current, tokens, reason)
            number = self._ledger.open_attempt(
                self._config.run_id, self._epoch, start, reason
            )
            self._attempt = None
            self._faults.add(place)
            self._attempt = Attempt(number, new_key(), tuple(tokens), start)
            same = current is not None and set(tokens) == set(current.tokens)
            self._resizes.reopened(by_same_roster=same)
            self._step = start
            return number

    def request(
        self, attempt: int, rank: int, token: bytes, start: int, stop: int
    ) -> GrantReply:
        """Returns the keys of steps [start, stop) for one rank.

        The first rank to ask causes the charge; the others share it. The request's
        nonce is (attempt, token, start, stop): the same incarnation that asks again,
        because a reply was lost, gets the same grant.

        Raises:
            GrantRefusedError: Another incarnation asks, or the range is out of order.
        """
        with self._lock:
            current = self._attempt
            if current is None or current.number != attempt:
                return GrantReply("closed")
            current.check_incarnation(rank, token)
            current.check_order(rank, start)
            if start not in current.granted:
                if self._stop:
                    current.ended = True
                    return GrantReply("stop")
                if self._resizes.boundary.withhold(start):
                    return GrantReply("boundary")
                try:
                    current.granted[start] = self._charge(current, token, start, stop)
                    current.sample_keys.clear()
                except BudgetExhausted:
                    return GrantReply("exhausted")
            granted_stop = current.serve(rank, token, start)
            keys = self._keys(current, rank, start, granted_stop)
            return GrantReply("granted", keys, current.position)

    def _keys(
        self, current: Attempt, rank: int, start: int, stop: int
    ) -> tuple[StepKeys, ...]:
        steps = range(start, stop)
        return current.keys(self._plan, self._config.run_id, rank, steps)

    def _charge(self, current: Attempt, token: bytes, start: int, stop: int) -> int:
        """Makes the charge durable; returns the stop that the allowance allows."""
        left = self._plan.num_steps_max - self._num_charged
        stop = min(stop, start + left)
        if stop <= start:
            used_up = {"run_id": self._config.run_id, "charged": self._num_charged}
            self._ledger.observers.tell([BudgetEvent("exhausted", used_up)])
            raise BudgetExhausted("The run's allowance of steps is used up.")
        nonce = derive_key(token, "nonce", current.number, start, stop)[:16].hex()
        position = self._ledger.charge_steps(
            self._config.run_id, self._epoch, current.number, start, stop, nonce
        )
        self._num_charged += stop - start
        current.position = self._as_header(position)
        self._remember(position, durable=False)
        return stop

    # -- looks ------------------------------------------------------------------

    def charge_look(
        self, attempt: int, rank: int, token: bytes, step: int
    ) -> LookReply:
        """Charges one look at the validation block and returns its fresh key."""
        with self._lock:
            current = self._attempt
            if current is None or current.number != attempt:
                return LookReply("closed")
            current.check_incarnation(rank, token)
            try:
                ordinal = self._ledger.charge_look(
                    self._config.run_id, self._epoch, f"step-{step}"
                )
            except BudgetExhausted:
                return LookReply("exhausted")
            self._looks[ordinal] = step
            return LookReply("granted", ordinal, new_key())

    def store_release(self, ordinal: int, values: list[int]) -> None:
        """Stores a look's released values; they are never drawn again.

        Raises:
            AttemptClosedError: An earlier coordinator charged the look. Its values
                are dropped unseen and another look has to be charged.
        """
        with self._lock:
            if ordinal not in self._looks:
                raise AttemptClosedError(
                    f"Look {ordinal} was charged by an earlier coordinator.",
                    "Open a new attempt and charge another look.",
                )
            stored = {"step": self._looks[ordinal], "counts": list(values)}
            known = self._ledger.released(self._config.run_id).get(ordinal)
            if known == stored:
                return
            self._ledger.store_release(
                self._config.run_id, self._epoch, ordinal, stored
            )

    def released_looks(self) -> set[int]:
        """Returns the step counts whose look has a stored value."""
        with self._lock:
            stored = self._ledger.released(self._config.run_id)
            return {int(values["step"]) for values in stored.values()}

    # -- checkpoints, progress, end ---------------------------------------------

    def checkpoint_registered(self, attempt: int, step: int, name: str) -> None:
        """Records that a checkpoint is registered and may be relied on."""
        with self._lock:
            position = self._ledger.record_checkpoint(
                self._config.run_id, self._epoch, attempt, step, name
            )
            self._remember(position)
            self._note_step(attempt, step)

    def _as_header(self, position: Position) -> dict[str, Any]:
        """Returns a position with the ledger's id, for checkpoint headers."""
        return {
            "ledger_id": self._ledger_id,
            "sequence": position.sequence,
            "root": position.root,
        }

    def data_key(self) -> bytes:
        """Returns the key of unit digests; workers need it to cut their shards."""
        return self._ledger.fingerprint_key()

    def dataset_commitment(self, name: str) -> str:
        """Returns the keyed commitment of a registered data set, as hex."""
        return self._ledger.dataset(name).commitment

    def progress(self, attempt: int, step: int) -> bool:
        """Notes that an attempt has made steps up to ``step``.

        Returns:
            Whether workers should save before their grant is over: a node leaves.
        """
        self._note_step(attempt, step)
        return self._resizes.is_node_leaving

    def _note_step(self, attempt: int, step: int) -> None:
        """An attempt that was passed on counts from its own first step."""
        current = self._attempt
        if current is not None and attempt == current.number:
            self._released[attempt] = step - current.start
            self._step = step

    # -- planned resizes --------------------------------------------------------

    def want_boundary(self, num_workers: int) -> bool:
        """Asks the workers to save and wait before their next grant.

        Returns:
            Whether a roster of that size can carry the plan's noise.
        """
        with self._lock:
            return self._resizes.want(num_workers, is_stopping=self._stop)

    def park(self, attempt: int, rank: int, token: bytes, step: int) -> bool:
        """Rank 0 has saved ``step`` at a boundary and asks whether to wait on.

        Returns:
            False when the workers are to go on.
        """
        with self._lock:
            current = self._attempt
            if current is None or current.number != attempt:
                return False
            current.check_incarnation(rank, token)
            return self._resizes.park(current, step, is_stopping=self._stop)

    def approve_resize(self, num_workers: int) -> bool:
        """Lets the parked group be ended, as :meth:`Resizes.approve` promises."""
        with self._lock:
            if self._stop or self._attempt is None:
                return False
            return self._resizes.approve(num_workers)

    def give_up_boundary(self) -> None:
        """Lets the workers go on as they are."""
        with self._lock:
            self._resizes.boundary.give_up()

    def expect_new_roster(self, public_cause: str) -> None:
        """Notes a public cause, such as a lost node, for the next change of roster."""
        with self._lock:
            self._faults.expect(public_cause)

    def tell_step_times(self, step_times: list[dict[str, float]]) -> None:
        """Takes what made-up records cost in each phase, in seconds."""
        self._resizes.step_times = step_times

    def warn_of_leaving(self, is_leaving: bool) -> None:  # noqa: FBT001 - a remote call
        """Notes whether a node of the run is about to leave: workers then save."""
        self._resizes.is_node_leaving = is_leaving

    def tell_scaling(self, told: dict[str, Any], *, is_new: bool) -> None:
        """Takes the last scaling decision for the display; a new one is an event."""
        self._resizes.tell(told, is_new=is_new)

    def scaling_view(self) -> dict[str, Any]:
        """Returns what scaling decisions are made of; none of it is private."""
        with self._lock:
            return {
                "step": self._step,
                "num_steps_left": self._plan.num_steps_max - self._num_charged,
                "is_stopping": self._stop,
                **self._resizes.view(),
            }

    def status(self) -> dict[str, Any]:
        """Returns what the display shows, nothing private; lets time limits pass."""
        self._time_limits.tick()
        with self._lock:
            run = self._ledger.run_status(self._config.run_id)
            return {
                "pid": os.getpid(),
                "step": self._step,
                "num_steps": self._plan.num_steps,
                "num_steps_max": self._plan.num_steps_max,
                "num_steps_charged": run.num_steps_charged,
                "attempts": run.num_attempts,
                "released": dict(self._released),
                "epoch": self._epoch,
                "scaling": self._resizes.decision,
                "boundary": self._resizes.boundary.to_dict(),
            }

    def request_stop(self) -> None:
        """Lets workers finish what is granted, checkpoint and end."""
        self._stop = True

    def end_run(
        self, status: str, num_steps_released: int, *, died: bool = False
    ) -> None:
        """Writes the run's end to the ledger; the same end again changes nothing.

        Args:
            status: completed, budget_exhausted, interrupted or failed.
            num_steps_released: Steps made over all attempts, as far as is known.
            died: The worker group died for good; the ledger keeps its step in mind.
        """
        with self._lock:
            current, self._attempt = self._attempt, None
            if died and current is not None and not current.ended:
                reason, _ = self._faults.name(current, [], WORKER_RESTART)
                self._ledger.open_attempt(
                    self._config.run_id, self._epoch, current.start, reason
                )
            run = self._ledger.run_status(self._config.run_id)
            if run.epoch == self._epoch and run.status == status:
                return  # the reply to the first call was lost
            self._ledger.end_run(
                self._config.run_id, self._epoch, status, num_steps_released
            )
            self._remember(self._ledger.position())

    def mark_non_private(self, dataset: str, block: str) -> None:
        """Writes the marker row of a non-private run on public data."""
        with self._lock:
            self._ledger.mark_non_private(dataset, self._config.run_id, block=block)
