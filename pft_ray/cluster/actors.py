"""The coordinator as a detached named actor, and this rank's client of it."""

from __future__ import annotations

import math
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.errors import CoordinatorUnreachableError, PftError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pft_ray.training.loop import GrantReply, LookReply

NAMESPACE = "pft"
_NODE = re.compile(r"node:(?!__).+")
_RETRY_PAUSE_S = 0.2
_TELL_EVERY_S = 0.2
_PARK_POLL_S = 0.2
_UNREACHABLE = (ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError)


def actor_name(run_id: str) -> str:
    """Returns the name of a run's coordinator actor."""
    return f"pft-coordinator-{run_id}"


def start_coordinator(
    config: CoordinatorConfig, cls: type[Coordinator] = Coordinator
) -> Any:
    """Starts the run's coordinator on this node, replacing one left behind.

    Its constructor arguments hold no key. It restarts by itself after a crash, and
    no call is retried by Ray: a repeated charge must be asked for knowingly.

    Returns:
        The actor handle, once it answers.
    """
    name = actor_name(config.run_id)
    stop_coordinator(config.run_id)
    actor = (
        ray.remote(cls)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            resources={_this_machine(): 0.001},
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            ),
        )
        .remote(config)
    )
    call(actor, "status", timeout_s=60.0)
    return actor


def _this_machine() -> str:
    """Returns the resource that Ray gives to each node by its address.

    The ledger's files are on this machine. A node that was restarted has another id
    and the same address: the coordinator comes back there, and nowhere else.
    """
    own = ray.get_runtime_context().get_node_id()
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == own)
    named: str = next(name for name in resources if _NODE.fullmatch(name))
    return named


def stop_coordinator(run_id: str) -> None:
    """Ends the run's coordinator if one is up, and waits until its name is free."""
    name = actor_name(run_id)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return
        ray.kill(actor)
        time.sleep(_RETRY_PAUSE_S)


def connect(run_id: str) -> Any:
    """Returns the handle of the run's coordinator.

    Raises:
        CoordinatorUnreachableError: There is none.
    """
    try:
        return ray.get_actor(actor_name(run_id), namespace=NAMESPACE)
    except ValueError:
        raise CoordinatorUnreachableError(
            f"The run {run_id} has no coordinator.",
            "Start the run again: it resumes from its last registered checkpoint.",
        ) from None


def call(
    actor: Any,
    method: str,
    *args: Any,
    timeout_s: float = 60.0,
    sent: Any = None,
    **named: Any,
) -> Any:
    """Calls a coordinator method; tries again while the actor is coming back.

    Safe to repeat: requests carry the incarnation's token, stored values are equal
    or refused, and a repeated charge of a look spends a further look.

    Args:
        actor: The coordinator's handle.
        method: Its method.
        args: The method's arguments.
        timeout_s: How long to wait, tries and pauses included, in seconds.
        sent: The pending reply of the same call, sent before.
        named: The method's named arguments.

    Raises:
        CoordinatorUnreachableError: It did not answer within ``timeout_s``.
        PftError: What the coordinator raised.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = max(0.1, deadline - time.monotonic())
        try:
            if sent is None:
                sent = getattr(actor, method).remote(*args, **named)
            return ray.get(sent, timeout=left)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, PftError) else error from None
        except _UNREACHABLE as error:
            if time.monotonic() + _RETRY_PAUSE_S >= deadline:
                raise CoordinatorUnreachableError(
                    f"The privacy coordinator did not answer {method} within "
                    f"{timeout_s:g} s ({type(error).__name__}).",
                    "Without it nothing runs; start the run again to resume it.",
                ) from None
            sent = None
            time.sleep(_RETRY_PAUSE_S)


def reply_if_there(sent: Any) -> Any:
    """Returns a pending reply without waiting; None when it is not there, or lost."""
    if not ray.wait([sent], timeout=0)[0]:
        return None
    try:
        return ray.get(sent)
    except RayError:
        return None


class CoordinatorClient:
    """One rank's line to the coordinator; its token is this incarnation's name."""

    def __init__(self, actor: Any, rank: int, token: bytes) -> None:
        self._actor = actor
        self.rank = rank
        self.token = token
        self.waited_s: dict[str, float] = {}  # by method
        self.position: Mapping[str, Any] | None = None
        self._ahead: tuple[tuple[int, int, int], Any] | None = None
        self._unsettled: tuple[tuple[int, int, str], Any] | None = None
        self._told_at = -math.inf
        self._told: Any = None
        self._is_warned = False

    def _call(self, method: str, *args: Any, sent: Any = None) -> Any:
        with self._timed(method):
            return call(self._actor, method, *args, sent=sent)

    @contextmanager
    def _timed(self, method: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._note(method, time.perf_counter() - start)

    def _note(self, method: str, seconds: float) -> None:
        """Adds the time of one call, waiting or not."""
        self.waited_s[method] = self.waited_s.get(method, 0.0) + seconds

    def open_attempt(self, tokens: list[bytes], start: int, reason: str) -> int:
        """Opens an attempt for the roster of tokens; returns its number."""
        return int(self._call("open_attempt", tokens, start, reason))

    def request(self, attempt: int, start: int, stop: int) -> GrantReply:
        """Asks for the keys of steps [start, stop)."""
        ahead, self._ahead = self._ahead, None
        sent = None
        if ahead is not None and ahead[0] == (attempt, start, stop):
            sent = ahead[1]
        reply: GrantReply = self._call(
            "request", attempt, self.rank, self.token, start, stop, sent=sent
        )
        self.position = reply.position or self.position
        return reply

    def ask_ahead(self, attempt: int, start: int, stop: int) -> None:
        """Sends, without waiting, the request that will follow."""
        with self._timed("ask_ahead"):
            sent = self._actor.request.remote(
                attempt, self.rank, self.token, start, stop
            )
        self._ahead = ((attempt, start, stop), sent)

    def charge_look(self, attempt: int, step: int) -> LookReply:
        """Charges one look and returns its key."""
        reply: LookReply = self._call(
            "charge_look", attempt, self.rank, self.token, step
        )
        return reply

    def store_release(self, ordinal: int, values: list[int]) -> None:
        """Stores the released values of a look for good."""
        self._call("store_release", ordinal, values)

    def released_looks(self) -> set[int]:
        """Returns the step counts whose look has a stored value."""
        looks: set[int] = self._call("released_looks")
        return looks

    def progress(self, attempt: int, step: int) -> bool:
        """Tells, without waiting, that the attempt has made steps up to ``step``.

        At most five times a second: it is for the operator's display, and brings the
        warning that a node is about to leave.

        Returns:
            That warning, from the last reply that has come.
        """
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            with self._timed("progress"):
                self._hear()
                self._told = self._actor.progress.remote(attempt, step)
        return self._is_warned

    def _hear(self) -> None:
        """Takes the reply to the last progress if it is there; it may be lost."""
        if self._told is not None:
            reply = reply_if_there(self._told)
            self._is_warned = self._is_warned if reply is None else bool(reply)

    def park(self, attempt: int, step: int) -> None:
        """Waits at a boundary until the group is ended or is to go on."""
        while self._call("park", attempt, self.rank, self.token, step):
            time.sleep(_PARK_POLL_S)

    def knows_step_times(self) -> bool:
        """Says whether made-up steps of this run were measured before."""
        return bool(self._call("scaling_view")["step_times"])

    def tell_step_times(self, step_times: list[dict[str, float]]) -> None:
        """Tells what made-up records cost in each phase."""
        self._call("tell_step_times", step_times)

    def checkpoint_registered(self, attempt: int, step: int, name: str) -> None:
        """Records, without waiting, that a checkpoint is registered.

        What goes wrong there is raised by :meth:`settle`.
        """
        self.settle()
        args = (attempt, step, name)
        with self._timed("checkpoint_registered"):
            sent = self._actor.checkpoint_registered.remote(*args)
        self._unsettled = (args, sent)

    def settle(self) -> None:
        """Waits until the ledger has the last checkpoint's row.

        Raises:
            PftError: What the coordinator raised.
        """
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is not None:
            args, sent = unsettled
            self._call("checkpoint_registered", *args, sent=sent)

    def data_key(self) -> bytes:
        """Returns the key of unit digests."""
        key: bytes = self._call("data_key")
        return key

    def dataset_commitment(self, name: str) -> str:
        """Returns the keyed commitment of a registered data set."""
        return str(self._call("dataset_commitment", name))

    def mark_non_private(self, dataset: str, block: str) -> None:
        """Writes the marker row of a non-private run on public data."""
        self._call("mark_non_private", dataset, block)
