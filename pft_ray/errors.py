"""Every error pft_ray raises on purpose, in one tree.

Each error says what was found and what to change, carries a stable ``code`` for
programs and an ``exit_code`` for the shell, and survives pickling, because Ray
sends errors between processes.
"""

from __future__ import annotations

from typing import Any

EXIT_DONE = 0
EXIT_OTHER = 1
EXIT_INPUT = 2
EXIT_BUDGET = 3
EXIT_VERIFICATION = 4
EXIT_GATE = 5


class PftError(Exception):
    """Base of all errors: ``message`` says what was found, ``fix`` what to change.

    Args:
        message: What was found. Never holds text of a private record or a key.
        fix: What the reader can change, or empty when nothing can be.
        details: JSON-able values for programs (``--json``).
    """

    code = "error"
    exit_code = EXIT_OTHER

    def __init__(
        self, message: str, fix: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.fix, self.details))

    def to_dict(self) -> dict[str, Any]:
        """Returns the error as one JSON object, the form ``--json`` prints."""
        return {
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "details": self.details,
        }


class InputError(PftError, ValueError):
    """Something the user gave is not usable."""

    code = "bad-input"
    exit_code = EXIT_INPUT


class ConfigError(InputError):
    """The job file is wrong: unknown key, wrong type, value out of range."""

    code = "bad-config"


class PlanError(InputError):
    """No sound plan follows from the numbers given."""

    code = "bad-plan"


class DataError(InputError):
    """A data file or one of its columns, labels or ids is not usable."""

    code = "bad-data"


class ModelError(InputError):
    """A model cannot be loaded or cannot be trained with a bounded contribution."""

    code = "bad-model"


class MissingExtraError(InputError):
    """A verb needs packages of an extra that is not installed."""

    code = "missing-extra"


class PlacementError(InputError):
    """The cluster cannot hold the workers that the job asks for."""

    code = "cannot-place"


class ScalingError(InputError):
    """Limits, prices or a policy of an elastic run contradict each other."""

    code = "bad-scaling"


class ResumeError(InputError):
    """The run that was named cannot be resumed."""

    code = "cannot-resume"


class UnknownRunError(InputError):
    """A run is named that the ledger does not have."""

    code = "unknown-run"


class SettledError(InputError):
    """A run that ended for good, or gave its budget back, is to be settled again."""

    code = "already-settled"


class BudgetError(PftError):
    """The privacy budget does not allow what was asked."""

    code = "budget-refused"
    exit_code = EXIT_BUDGET


class BudgetExhausted(BudgetError):  # noqa: N818 - the field's name for the state
    """The run's allowance of steps (T_max) or looks is used up."""

    code = "budget-exhausted"


class MustWaitError(BudgetError):
    """The admission order lets other runs go first, or has not unlocked enough."""

    code = "must-wait"


class ReservationExpiredError(BudgetError):
    """The run's reservation passed its time limit unused and went back."""

    code = "reservation-expired"


class UnknownBlockError(InputError):
    """A block or data set is named that the ledger does not have."""

    code = "unknown-block"


class UnknownPurposeError(InputError):
    """A purpose is named that the filter block does not have."""

    code = "unknown-purpose"


class BlockModeError(InputError):
    """Envelopes and shares of rho are mixed, or do not suit a block's mode."""

    code = "block-mode"


class LedgerError(PftError):
    """The ledger cannot be used as it is: locked, full disk, newer schema."""

    code = "ledger"


class LedgerFormatError(LedgerError):
    """What is named is no ledger, or one of a schema that this version cannot read."""

    code = "ledger-format"
    exit_code = EXIT_INPUT


class LedgerLockedError(LedgerError):
    """Another process held the ledger's write lock for too long."""

    code = "ledger-locked"


class LedgerStorageError(LedgerError):
    """The ledger's storage refused a write (full disk, read-only file)."""

    code = "ledger-storage"


class LedgerUnreachableError(LedgerError):
    """The ledger's database does not answer: nothing runs without it."""

    code = "ledger-unreachable"


class LedgerConnectionLostError(LedgerError):
    """The ledger's database went away; ``details["outcome"]`` says what is known.

    ``unknown`` during a commit: only a later read tells whether it was charged.
    """

    code = "ledger-connection-lost"


class VerificationError(PftError):
    """The ledger, or a claim about it, does not verify."""

    code = "verification-failed"
    exit_code = EXIT_VERIFICATION


class LedgerBehindError(VerificationError):
    """A checkpoint, report or anchor names a position the ledger lacks."""

    code = "ledger-behind"


class StaleCoordinatorError(PftError):
    """A newer coordinator owns this run; this one may not append any more."""

    code = "stale-coordinator"


class AttemptClosedError(PftError):
    """The attempt a worker asks for has ended; a new one must be opened."""

    code = "attempt-closed"


class GrantRefusedError(PftError):
    """A grant request breaks the rules of keys: nonce, incarnation or order."""

    code = "grant-refused"


class VoidStepError(PftError):
    """The roster or noise shares of a step do not check; it stays charged."""

    code = "void-step"


class CoordinatorUnreachableError(PftError):
    """No coordinator answered in time: no ledger, no step."""

    code = "coordinator-unreachable"


class RunFailedError(PftError):
    """A run ended before its planned end for a reason that is not the budget."""

    code = "run-failed"
