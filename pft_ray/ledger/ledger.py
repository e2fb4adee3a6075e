"""The ledger: what was spent on which data, durable before anything is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pft_ray.crypto import new_token
from pft_ray.errors import BudgetError, InputError
from pft_ray.ledger import bodies, registration
from pft_ray.ledger.chain import Chain
from pft_ray.ledger.entries import Position
from pft_ray.ledger.filters import FilterBlocks
from pft_ray.ledger.joint import JointReservations
from pft_ray.ledger.observers import refusal
from pft_ray.ledger.opening import ledger_source, open_for_writing
from pft_ray.ledger.patience import until_back
from pft_ray.ledger.queue import LedgerQueue
from pft_ray.ledger.reader import LedgerReader
from pft_ray.ledger.run_rules import find_grant
from pft_ray.ledger.state import check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.bodies import BlockSpec
    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.entries import Body, Entry
    from pft_ray.ledger.shares import RhoShare
    from pft_ray.ledger.state import LedgerState


class Ledger(LedgerReader):
    """A durable, append-only, hash-chained record of privacy loss.

    Every method that appends returns after the entry is on the disk. Every method
    first reads what other processes appended, so several processes may share it.
    Threads may share one object. After a fork the child has to open its own.

    Guarantee:
        What a method acknowledged is in every later replay of the ledger, also after
        a crash of the process, the server or the machine (SQLite's write-ahead log
        with ``synchronous=FULL``, PostgreSQL's with ``synchronous_commit`` and
        ``fsync`` on; the disk must honour fsync). A connection that is lost during a
        commit raises: whether it was charged, the next call reads.
    """

    def __init__(self, chain: Chain, keys_dir: Path | None) -> None:
        super().__init__(chain)
        self._keys_dir = keys_dir
        self.filters = FilterBlocks(chain)
        self.joint = JointReservations(chain)
        self.queue = LedgerQueue(chain)

    @classmethod
    def open(
        cls,
        url_or_path: str | Path,
        *,
        keys_dir: Path | None = None,
        create: bool = False,
        timeout_s: float = 10.0,
        patience_s: float = 0.0,
    ) -> Self:
        """Opens a ledger and replays it.

        Args:
            url_or_path: A path, ``sqlite:///path`` or
                ``postgresql://host/database``.
            keys_dir: Folder of the fingerprint key; None when nothing is registered.
            create: Make a new ledger when there is none.
            timeout_s: How long an append waits for other processes.
            patience_s: How long every call waits for a database that went away and
                goes on when it is back.

        Raises:
            InputError: There is none and ``create`` is False.
            MissingExtraError: PostgreSQL's driver is not installed.
            LedgerError: It is no ledger, or a newer version wrote it.
            LedgerUnreachableError: The database does not answer.
            LedgerStorageError: A network file system, storage that fails, or a
                server that cannot promise durable commits.
            VerificationError: It is damaged; the row or page is named.
        """
        source = ledger_source(url_or_path)
        store, ledger_id = until_back(
            lambda: open_for_writing(source, timeout_s, create=create), patience_s
        )
        try:
            chain = Chain(store, patience_s)
            chain.require_id(ledger_id)
        except BaseException:
            store.close()
            raise
        return cls(chain, keys_dir)

    def be_patient(self, patience_s: float) -> None:
        """Lets every later call wait that long for a database that went away."""
        self._chain.patience_s = patience_s

    def close(self) -> None:
        """Closes the connection."""
        self._chain.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- data sets and blocks ---------------------------------------------------

    def fingerprint_key(self) -> bytes:
        """Returns the 32-byte key of the fingerprints, made on first use (0600).

        Raises:
            LedgerError: No key folder was given, or the key is lost or another one.
        """
        with self._chain.reading() as state:
            wanted, ledger_id = state.key_check, state.ledger_id
        return registration.find_key(self._keys_dir, ledger_id, wanted)

    def register_dataset(
        self,
        name: str,
        *,
        public: bool,
        namespaces: Mapping[str, NDArray[np.uint8]],
        facts: Mapping[str, Any],
    ) -> bool:
        """Registers a data set by the keyed fingerprints of its units.

        Args:
            name: Its name in the ledger.
            public: True when nothing in it is private; fixed for ever.
            namespaces: Declared kind of id to fingerprints, uint8 of shape (n, 16),
                each made with :meth:`fingerprint_key`.
            facts: Declared (public) facts; those of the first registration hold.

        Returns:
            True when it is new, False when the same data has the name already.

        Raises:
            InputError: The name has other data, or the data overlaps a registration
                while both are private. The message does not say by how much.
        """
        key = self.fingerprint_key()
        packed = registration.sorted_fingerprints(namespaces)
        body: Body = {
            "name": name,
            "public": bool(public),
            "namespaces": list(packed),
            "commitment": registration.packed_commitment(key, packed),
            "key_check": registration.key_check(key, self.ledger_id),
            "facts": bodies.plain(dict(facts)),
        }
        store = self._chain.store

        def build(state: LedgerState) -> Body | None:
            known = state.datasets.get(name)
            if known is not None:
                registration.require_same(known, body)
                return None
            return body

        def add_fingerprints(state: LedgerState) -> None:
            registration.insert_fingerprints(store, name, packed)
            if not public:
                registration.refuse_overlap(state, name, store.overlapping(name))

        return self._chain.append("dataset", build, add_fingerprints) is not None

    def create_block(self, spec: BlockSpec) -> bool:
        """Creates a block of mode ``plan`` with a budget of its own.

        Returns:
            True when it is new, False when the same definition exists.

        Raises:
            InputError: The name has another definition, or the budget is not usable.
            UnknownBlockError: The data set is not registered.
        """
        body, name = bodies.block(spec), spec.name

        def build(state: LedgerState) -> Body | None:
            known = state.blocks.get(name)
            if known is None:
                return body
            if {field: getattr(known, field) for field in body} != body:
                raise InputError(
                    f"Block {name!r} exists with another definition.",
                    "Blocks never change: take another name.",
                    {"block": name},
                )
            return None

        return self._chain.append("block", build) is not None

    # -- reservations -----------------------------------------------------------

    def check_reservation(
        self, plan: Plan, envelopes: Sequence[Envelope | RhoShare]
    ) -> None:
        """Raises what :meth:`reserve` would raise now; reserves nothing."""
        body = bodies.reservation(new_token().hex(), "check", plan, envelopes)
        try:
            with self._chain.reading() as state:
                check(state, "reserve", body)
        except BudgetError as error:
            self.observers.tell([refusal("reserve", error)])
            raise

    def reserve(
        self,
        run_id: str,
        plan: Plan,
        envelopes: Sequence[Envelope | RhoShare],
        *,
        name: str = "",
    ) -> Position:
        """Reserves all envelopes of a new run, or none.

        Args:
            run_id: Never used before.
            plan: What the run will do; envelopes pay for its events.
            envelopes: One a block and purpose, at least one for training; shares of
                rho on filter blocks, which are never mixed with envelopes.
            name: Public name of the run; the run id when empty.

        Returns:
            Sequence and root of the reservation's entry.

        Raises:
            BudgetError: A block has not enough left; nothing was written.
            MustWaitError: It would overtake a run that waits in :attr:`queue`.
            InputError: The run exists, or an envelope does not pay for the plan.
            BlockModeError: A part does not suit its block's mode.
            UnknownBlockError: A block does not exist.
        """
        body = bodies.reservation(run_id, name or run_id, plan, envelopes)
        return self._append("reserve", lambda _: body).position

    def release_reservation(self, run_id: str) -> Position:
        """Gives a reservation back while nothing of it was charged.

        A run on filter blocks gives back what it was not charged. The run gets no
        grant ever after, even if its coordinator is alive.

        Raises:
            BudgetError: The run was charged, and holds envelopes.
            SettledError: Its reservation was given back or settled before.
        """
        body: Body = {"run_id": run_id}
        return self._append("release_reservation", lambda _: body).position

    # -- runs -------------------------------------------------------------------

    def take_epoch(self, run_id: str) -> int:
        """Makes the caller the run's owner; older coordinators can append no more.

        Raises:
            ResumeError: The run is over for good.
        """
        entry = self._append(
            "epoch",
            lambda state: {"run_id": run_id, "epoch": state.run(run_id).epoch + 1},
        )
        return int(entry.body["epoch"])

    def open_attempt(self, run_id: str, epoch: int, start: int, reason: str) -> int:
        """Opens the next attempt from planned step ``start``; returns its number.

        Raises:
            StaleCoordinatorError: A newer epoch owns the run.
            AttemptClosedError: The run is not running.
        """
        body = bodies.of_run(run_id, epoch=epoch, start=start) | {"reason": reason}
        entry = self._append(
            "attempt",
            lambda state: body | {"attempt": len(state.run(run_id).attempts) + 1},
        )
        return int(entry.body["attempt"])

    def charge_steps(
        self,
        run_id: str,
        epoch: int,
        attempt: int,
        start: int,
        stop: int,
        nonce: str,
    ) -> Position:
        """Charges the steps [start, stop) of an attempt, before any noise is drawn.

        The same nonce with the same steps of the open attempt is answered with the
        first position and charged once.

        Args:
            run_id: The run.
            epoch: The caller's epoch.
            attempt: The open attempt.
            start: First step.
            stop: One past the last step.
            nonce: 32 hex digits that belong to this request.

        Raises:
            StaleCoordinatorError: A newer epoch owns the run.
            AttemptClosedError: The attempt or the run has ended.
            GrantRefusedError: The steps were granted, span two phases or are too
                many for one grant, or the nonce was used for others.
            BudgetExhausted: Fewer paid steps are left; ``details`` says how many.
        """
        body = bodies.of_run(
            run_id, epoch=epoch, attempt=attempt, start=start, stop=stop
        )
        body["nonce"] = nonce
        first: list[int] = []

        def build(state: LedgerState) -> Body | None:
            known = find_grant(state, body)
            if known is not None:
                first.append(known)
                return None
            charged = state.run(run_id).num_steps_charged + stop - start
            return body | {"charged": max(charged, 0)}

        entry = self._chain.append("grant", build)
        if entry is not None:
            return entry.position
        return Position(first[0], self._root_at(first[0]) or "")

    def charge_look(self, run_id: str, epoch: int, position: str) -> int:
        """Charges one look at the validation block, before its noise is drawn.

        Args:
            run_id: The run.
            epoch: The caller's epoch.
            position: Public label of when, for example ``step-40``.

        Returns:
            The look's number, from 0; its noise and released values belong to it.

        Raises:
            BudgetExhausted: All looks that are paid for were used.
        """
        body = bodies.of_run(run_id, epoch=epoch) | {"position": position}

        def build(state: LedgerState) -> Body:
            run = state.run(run_id)
            return body | {"look": len(run.looks), "block": run.evaluation_block or ""}

        return int(self._append("look", build).body["look"])

    def store_release(
        self, run_id: str, epoch: int, look: int, values: Mapping[str, Any]
    ) -> Position:
        """Stores the released values of a look (JSON), once and for ever.

        Raises:
            GrantRefusedError: The look was not charged by this epoch, or it has
                values already.
        """
        body = bodies.of_run(run_id, epoch=epoch, look=look)
        body["values"] = bodies.plain(dict(values))
        return self._append("release", lambda _: body).position

    def record_checkpoint(
        self, run_id: str, epoch: int, attempt: int, step: int, name: str
    ) -> Position:
        """Notes a registered checkpoint: the state after ``step`` steps.

        Raises:
            InputError: The attempt was not granted that far.
        """
        body = bodies.of_run(run_id, epoch=epoch, attempt=attempt, step=step)
        body["name"] = name
        return self._append("checkpoint", lambda _: body).position

    def mark_non_private(self, dataset: str, run: str, *, block: str = "") -> Position:
        """Notes that a run without a guarantee uses public data.

        Raises:
            InputError: The data set is private.
        """
        body: Body = {"dataset": dataset, "block": block, "run": run}
        return self._append("non_private", lambda _: body).position

    def end_run(
        self, run_id: str, epoch: int, status: str, num_steps_released: int
    ) -> Position:
        """Ends a run.

        Args:
            run_id: The run.
            epoch: The caller's epoch.
            status: ``completed`` or ``budget_exhausted``, which are final, or
                ``interrupted`` or ``failed``: a new epoch can take the run again.
            num_steps_released: Steps whose noisy sum was applied.

        Raises:
            StaleCoordinatorError: A newer epoch owns the run.
        """
        body = bodies.of_run(run_id, epoch=epoch, num_steps_released=num_steps_released)
        body["status"] = status
        return self._append("end", lambda _: body).position

    def _append(self, kind: str, build: Callable[[LedgerState], Body]) -> Entry:
        entry = self._chain.append(kind, build)
        assert entry is not None  # build never gives None
        return entry
