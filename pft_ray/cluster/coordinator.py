"""The privacy coordinator: owns a run's ledger line and hands out grants.

A plain class, tested without Ray; :mod:`pft_ray.cluster.actors` makes it an actor.
It is a cache of the ledger: a new one replays the ledger, takes the next fencing
epoch, and starts without any attempt, because attempt keys live in memory only.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_ray.cluster.ledger_place import open_place
from pft_ray.cluster.step_keys import check_roster, common_sample_key, step_keys
from pft_ray.crypto import derive_key, new_key
from pft_ray.errors import (
    AttemptClosedError,
    BudgetExhausted,
    GrantRefusedError,
    RunFailedError,
)
from pft_ray.ledger import BudgetEvent, Position, ReservationClock
from pft_ray.ledger.anchor import read_anchors, write_anchor
from pft_ray.telemetry import EventFile
from pft_ray.training.loop import GrantReply, LookReply

if TYPE_CHECKING:
    from pft_ray.training.step import StepKeys

_FATAL_REPEATS = 2
_UNPLANNED = ("worker-restart", "void-step")
_AT = "-at-"
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


@dataclass
class _Attempt:
    """An open attempt; its key is in this process's memory and nowhere else."""

    number: int
    key: bytes = field(repr=False)
    tokens: tuple[bytes, ...]
    start: int
    ended: bool = False
    granted: dict[int, int] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    served: dict[tuple[int, bytes], tuple[int, int]] = field(default_factory=dict)
    # Of the last grant's steps: they are the same on all ranks.
    sample_keys: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def charged(self) -> int:
        """One past the attempt's last charged step; its start before any."""
        return max(self.granted.values(), default=self.start)


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
        if config.events_path:
            self._ledger.observers.subscribe(EventFile(Path(config.events_path)))
        self._time_limits = ReservationClock(self._ledger.queue, time.monotonic)
        self._require_anchor()
        self._epoch = self._ledger.take_epoch(config.run_id)
        self._ledger_id = self._ledger.ledger_id
        status = self._ledger.run_status(config.run_id)
        self._plan = status.plan
        # Nobody else charges this run while the epoch is ours; the ledger checks.
        self._num_charged = status.num_steps_charged
        self._attempt: _Attempt | None = None
        self._lock = threading.Lock()
        self._stop = False
        self._looks: dict[int, int] = {}
        self._faults = self._stored_faults()
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
            if self._is_repeated(tokens, start):
                assert self._attempt is not None
                return self._attempt.number
            reason, position = self._name_reason(tokens, reason)
            number = self._ledger.open_attempt(
                self._config.run_id, self._epoch, start, reason
            )
            self._attempt = None
            if position is not None:
                self._faults[position] += 1
            self._refuse_repeated_faults()
            self._attempt = _Attempt(number, new_key(), tuple(tokens), start)
            self._step = start
            return number

    def _is_repeated(self, tokens: list[bytes], start: int) -> bool:
        """The roster asks again, as a reply was lost; no key was handed out yet."""
        current = self._attempt
        return (
            current is not None
            and not current.ended
            and not current.granted
            and (current.tokens, current.start) == (tuple(tokens), start)
        )

    def _name_reason(self, tokens: list[bytes], reason: str) -> tuple[str, int | None]:
        """Returns the reason for the ledger, and the place of an unplanned end.

        A roster of new incarnations over an open attempt is a worker restart. The
        place, how far the attempt was charged, goes into the reason, so that later
        coordinators count it too.
        """
        current = self._attempt
        if current is None or current.ended:
            return reason, None
        if not set(tokens) & set(current.tokens):
            reason = "worker-restart"
        if reason not in _UNPLANNED:
            return reason, None
        return f"{reason}{_AT}{current.charged}", current.charged

    def _stored_faults(self) -> Counter[int]:
        """Returns unplanned ends by place, as the ledger holds them."""
        found: Counter[int] = Counter()
        for entry in self._ledger.history(_ALL, run_id=self._config.run_id):
            if entry.kind == "attempt":
                _, at, step = str(entry.body["reason"]).partition(_AT)
                if at:
                    found[int(step)] += 1
        return found

    def _refuse_repeated_faults(self) -> None:
        """Ends the run for good when one place ended it twice without a public cause.

        What happens twice in the steps of one grant may be a record's doing; going
        on, or not, would then tell of it.
        """
        for position, count in self._faults.items():
            if count >= _FATAL_REPEATS:
                raise RunFailedError(
                    f"Workers ended without a public cause {count} times in the steps "
                    f"charged up to step {position}.",
                    "Nothing further is released. Look at the workers' logs, then "
                    "start a new run with --new.",
                )

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
            self._check_incarnation(current, rank, token)
            if start not in current.granted:
                if self._stop:
                    current.ended = True
                    return GrantReply("stop")
                try:
                    current.granted[start] = self._charge(current, token, start, stop)
                    current.sample_keys.clear()
                except BudgetExhausted:
                    return GrantReply("exhausted")
            granted_stop = current.granted[start]
            earlier = current.served.setdefault((rank, token), (start, granted_stop))
            if earlier[0] > start:
                raise GrantRefusedError(
                    f"Rank {rank} asks for step {start} after step {earlier[0]}."
                )
            current.served[(rank, token)] = (start, granted_stop)
            keys = self._keys(current, rank, start, granted_stop)
            return GrantReply("granted", keys, current.position)

    @staticmethod
    def _check_incarnation(current: _Attempt, rank: int, token: bytes) -> None:
        if not 0 <= rank < len(current.tokens) or current.tokens[rank] != token:
            raise GrantRefusedError(
                f"Rank {rank} is not the incarnation that attempt "
                f"{current.number} was opened for.",
                "Open a new attempt.",
            )

    def _charge(self, current: _Attempt, token: bytes, start: int, stop: int) -> int:
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

    def _keys(
        self, current: _Attempt, rank: int, start: int, stop: int
    ) -> tuple[StepKeys, ...]:
        world, keys = len(current.tokens), []
        for step in range(start, stop):
            position = (self._config.run_id, current.number, step)
            sample = current.sample_keys.get(step)
            if sample is None:
                sample = common_sample_key(self._plan, current.key, position)
                current.sample_keys[step] = sample
            keys.append(
                step_keys(self._plan, current.key, position, rank, world, sample)
            )
        return tuple(keys)

    # -- looks ------------------------------------------------------------------

    def charge_look(
        self, attempt: int, rank: int, token: bytes, step: int
    ) -> LookReply:
        """Charges one look at the validation block and returns its fresh key."""
        with self._lock:
            current = self._attempt
            if current is None or current.number != attempt:
                return LookReply("closed")
            self._check_incarnation(current, rank, token)
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

    def progress(self, attempt: int, start: int, step: int) -> None:
        """Notes that an attempt has made steps up to ``step``."""
        if self._attempt is not None and attempt == self._attempt.number:
            self._released[attempt] = step - start
            self._step = step

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
                reason = f"worker-restart{_AT}{current.charged}"
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
