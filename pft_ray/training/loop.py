"""The step loop of one rank: grants in, steps made, checkpoints and looks out.

The loop knows no Ray. The collective, the coordinator's client and the checkpoint
sink are arguments, so that workers, trials and tests share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from pft_ray.errors import (
    AttemptClosedError,
    PftError,
    RunFailedError,
    VoidStepError,
)
from pft_ray.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pft_ray.accounting.plan import Plan
    from pft_ray.training.step import PrivateStep, StepKeys

Status = Literal["completed", "budget_exhausted", "interrupted", "failed"]

_GRANTED, _BOUNDARY, _STOP, _EXHAUSTED, _CLOSED, _ERROR = range(6)
_CODES = {
    "granted": _GRANTED,
    "boundary": _BOUNDARY,
    "stop": _STOP,
    "exhausted": _EXHAUSTED,
    "closed": _CLOSED,
}
_MAX_REOPENINGS = 20

_LOG = get_logger("pft_ray.loop")


@dataclass(frozen=True)
class GrantReply:
    """The coordinator's answer to a request for steps.

    Attributes:
        status: ``granted``, ``boundary`` (save and park: a resize is planned),
            ``stop`` (the operator asked to stop), ``exhausted`` (T_max is used up) or
            ``closed`` (open a new attempt).
        steps: Keys of the granted steps, in order; empty unless granted.
        position: The ledger's position at the charge, for a checkpoint's header;
            None unless granted.
    """

    status: Literal["granted", "boundary", "stop", "exhausted", "closed"]
    steps: tuple[StepKeys, ...] = ()
    position: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LookReply:
    """The coordinator's answer to a request for a look at the validation block."""

    status: Literal["granted", "exhausted", "closed"]
    ordinal: int = -1
    key: bytes = b""

    def __repr__(self) -> str:
        return f"LookReply({self.status}, ordinal={self.ordinal}, key hidden)"


class Grants(Protocol):
    """This rank's line to the coordinator."""

    rank: int
    token: bytes

    def open_attempt(self, tokens: list[bytes], start: int, reason: str) -> int:
        """Opens an attempt for the roster of tokens; returns its number."""

    def request(self, attempt: int, start: int, stop: int) -> GrantReply:
        """Asks for the keys of steps [start, stop)."""

    def ask_ahead(self, attempt: int, start: int, stop: int) -> None:
        """Sends, without waiting, the request that will follow."""

    def charge_look(self, attempt: int, step: int) -> LookReply:
        """Charges one look and returns its key."""

    def store_release(self, ordinal: int, values: list[int]) -> None:
        """Stores the released values of a look for good."""

    def released_looks(self) -> set[int]:
        """Returns the step counts whose look has a stored value."""

    def progress(self, attempt: int, step: int) -> bool:
        """Tells, without waiting, that the attempt has made steps up to ``step``.

        Returns:
            Whether to save at once, as far as is known: a node is about to leave.
        """

    def park(self, attempt: int, step: int) -> None:
        """Waits at a boundary, bounded, until the group is ended or is to go on."""


@dataclass
class LoopOutcome:
    """How a rank's loop ended.

    Attributes:
        status: Why it ended.
        step: Planned steps that the model now has.
        released: Steps made by attempt number.
        error: What went wrong when it failed.
    """

    status: Status
    step: int
    released: dict[int, int] = field(default_factory=dict)
    error: PftError | None = None


@dataclass
class TrainingLoop:
    """Runs the planned steps of one rank under grants.

    Attributes:
        plan: The run's plan.
        private_step: Makes one step.
        grants: The coordinator's client.
        enter_phase: Called with the phase index before its first step here.
        checkpoint: Called on every rank with the number of steps done.
        evaluate: Given a look's key, returns noisy counts; called on rank 0 only.
        phase: Index of the phase that was entered already, by a restored checkpoint;
            entering it again would start its optimiser afresh.
        is_elastic: Whether ranks ask after each step if a node is about to leave.
    """

    plan: Plan
    private_step: PrivateStep
    grants: Grants
    enter_phase: Callable[[int], None]
    checkpoint: Callable[[int, int], None]
    evaluate: Callable[[bytes], list[int]] | None = None
    phase: int = -1
    saved: int = -1
    attempt: int = -1
    attempt_start: int = 0
    is_elastic: bool = False
    _is_warned: bool = False
    _has_saved: bool = False
    _reopenings: int = 0

    def run(self, start: int, reason: str) -> LoopOutcome:
        """Runs from planned step ``start`` to the end of the plan or the budget.

        Args:
            start: Steps that the loaded parameters already have.
            reason: Why an attempt is opened, for the ledger.

        Returns:
            The outcome; equal on all ranks.

        Guarantee:
            Every step made was granted, so charged, before its noise was drawn. A
            grant that not every rank received is dropped: it stays charged and its
            keys are never used.
        """
        outcome = LoopOutcome("completed", start)
        self.saved = start  # a checkpoint of it is there, or nothing has been made
        try:
            self._open(start, reason)
            if start > 0:
                self._look_if_due(start)
            while outcome.step < self.plan.num_steps:
                code = self._advance(outcome)
                if code != _GRANTED:
                    outcome.status = (
                        "interrupted" if code == _STOP else "budget_exhausted"
                    )
                    self._save(outcome.step)
                    break
        except PftError as error:
            outcome.status, outcome.error = "failed", error
        return outcome

    def _advance(self, outcome: LoopOutcome) -> int:
        """Makes the steps of one grant; returns the code that all ranks agreed on."""
        start = outcome.step
        code, steps = self._request(start)
        if code == _CLOSED:
            self._open(start, "coordinator-restart")
            return _GRANTED
        if code == _BOUNDARY:
            self._park(start)
            return _GRANTED
        if code != _GRANTED:
            return code
        try:
            for keys in steps:
                if keys.step == steps[-1].step:
                    self._ask_ahead(keys.step + 1)
                self._make(keys, outcome)
                self._save_if_warned(outcome.step)
        except VoidStepError as error:
            # Every rank saw the same headers, so every rank is here: nothing was
            # drawn or applied, the grant stays charged, its keys are dropped.
            _LOG.warning("step %d is void: %s", outcome.step, error)
            self._open(outcome.step, "void-step")
            return _GRANTED
        if self._checkpoint_due(start, outcome.step):
            self._save(outcome.step)
        self._look_if_due(outcome.step)
        return _GRANTED

    def _make(self, keys: StepKeys, outcome: LoopOutcome) -> None:
        try:
            self._enter(keys.step)
            self.private_step.run(keys)
        except VoidStepError:
            raise
        except PftError as error:
            # It is this rank's alone: a quiet return would leave the others waiting
            # for its share. The process ends, and with it the group and the attempt.
            msg = f"rank {self.grants.rank} cannot make its part of a step"
            raise RuntimeError(msg) from error
        outcome.step = keys.step + 1
        outcome.released[self.attempt] = outcome.step - self.attempt_start
        self._reopenings = 0
        if self.grants.rank == 0:
            self._is_warned = self.grants.progress(self.attempt, outcome.step)

    def _save_if_warned(self, step: int) -> None:
        """Saves after the step at hand when a node is about to leave.

        The rest of the grant is still made, since it is paid for; should the node be
        quicker, no more than that is lost.
        """
        if not self.is_elastic:
            return
        is_new = self._is_warned and not self._has_saved
        self._has_saved = self._is_warned
        if self._agree(int(is_new)):
            self._save(step)

    def _park(self, step: int) -> None:
        """Saves the last charged step and waits for the resize that is planned.

        A resize ends this process; when none comes in time, the loop goes on.
        """
        self._save(step)
        error: PftError | None = None
        if self.grants.rank == 0:
            try:
                self.grants.park(self.attempt, step)
            except PftError as problem:
                error = problem
        if self._agree(_GRANTED if error is None else _ERROR) == _ERROR:
            raise error or RunFailedError("Rank 0 could not wait at a boundary.")

    def _enter(self, step: int) -> None:
        index, _ = self.plan.phase_at(step)
        if index != self.phase:
            self.enter_phase(index)
            self.phase = index

    def _save(self, step: int) -> None:
        if step != self.saved:
            self.checkpoint(step, self.attempt)
            self.saved = step

    def _checkpoint_due(self, start: int, step: int) -> bool:
        """At each interval, the end of a phase, a look and the end of the plan."""
        interval = self.plan.checkpoint_interval
        looks = self.plan.evaluation.looks if self.plan.evaluation else ()
        return (
            step // interval > start // interval
            or step == self.plan.phase_end(start)
            or step in looks
        )

    def _stop_of(self, start: int) -> int:
        """A grant stays in one phase and ends where a look is due.

        It ends at a multiple of the grant size, so a planned step lies in the same
        grant in every attempt, and ends of attempts at it are counted together.
        """
        size = self.plan.grant_size
        stop = min((start // size + 1) * size, self.plan.phase_end(start))
        looks = self.plan.evaluation.looks if self.plan.evaluation else ()
        return min([stop, *(look for look in looks if look > start)])

    def _ask_ahead(self, start: int) -> None:
        """Has the next grant charged while the last step of this one is made.

        It is charged before its noise is drawn, as ever; a group that ends in between
        has lost it, which the fault reserve counts in.
        """
        if start < self.plan.num_steps:
            self.grants.ask_ahead(self.attempt, start, self._stop_of(start))

    def _agree(self, code: int) -> int:
        """Returns the gravest code of all ranks; every rank calls it."""
        words = np.array([code], dtype=np.int64)
        return max(int(w[0]) for w in self.private_step.collective.gather(words))

    def _request(self, start: int) -> tuple[int, tuple[StepKeys, ...]]:
        error: PftError | None = None
        reply = GrantReply("closed")
        try:
            reply = self.grants.request(self.attempt, start, self._stop_of(start))
            code = _CODES[reply.status]
        except AttemptClosedError:
            code = _CLOSED
        except PftError as problem:
            error, code = problem, _ERROR
        agreed = self._agree(code)
        if agreed == _ERROR:
            raise error or RunFailedError("Another rank could not get a grant.")
        return agreed, reply.steps

    def _open(self, start: int, reason: str) -> None:
        """Opens an attempt for this roster: every rank calls it."""
        self._reopenings += 1
        if self._reopenings > _MAX_REOPENINGS:
            raise RunFailedError(
                f"{_MAX_REOPENINGS} attempts in a row made no step.",
                "Look for what keeps ending the coordinator.",
            )
        gather = self.private_step.collective.gather
        own = np.frombuffer(self.grants.token, dtype="<i8").astype(np.int64)
        tokens = [words.astype("<i8").tobytes() for words in gather(own)]
        number, error = -1, None
        if self.grants.rank == 0:
            try:
                number = self.grants.open_attempt(tokens, start, reason)
            except PftError as problem:
                error = problem
        number = int(gather(np.array([number], dtype=np.int64))[0][0])
        if number < 0:
            raise error or RunFailedError("Rank 0 could not open an attempt.")
        self.attempt, self.attempt_start = number, start
        _LOG.info("attempt %d opened at step %d (%s)", number, start, reason)

    def _look_if_due(self, step: int) -> None:
        """Takes the look planned after ``step`` unless its value is stored."""
        plan = self.plan.evaluation
        if plan is None or step not in plan.looks or self.evaluate is None:
            return
        while True:
            code, error = _GRANTED, None
            if self.grants.rank == 0:
                try:
                    code = self._look(step)
                except AttemptClosedError:
                    code = _CLOSED
                except PftError as problem:
                    error, code = problem, _ERROR
            agreed = self._agree(code)
            if agreed == _ERROR:
                raise error or RunFailedError("Rank 0 could not take a look.")
            if agreed != _CLOSED:
                return
            self._open(step, "coordinator-restart")

    def _look(self, step: int) -> int:
        assert self.evaluate is not None
        if step in self.grants.released_looks():
            return _GRANTED
        reply = self.grants.charge_look(self.attempt, step)
        if reply.status == "granted":
            values = self.evaluate(reply.key)
            self.grants.store_release(reply.ordinal, values)
        return _CODES[reply.status]


def merge_released(total: dict[int, int], more: Mapping[int, int]) -> dict[int, int]:
    """Returns steps made by attempt, taking the larger count of each."""
    merged = dict(total)
    for attempt, made in more.items():
        merged[int(attempt)] = max(merged.get(int(attempt), 0), int(made))
    return merged
