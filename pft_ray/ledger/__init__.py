"""The durable privacy ledger: budgets, reservations, charges, and their proof.

``Ledger`` is the way in; ``verify`` checks a ledger from its raw rows; anchors prove
that no tail was lost.
"""

from pft_ray.ledger.anchor import Anchor, read_anchors, write_anchor
from pft_ray.ledger.bodies import BlockSpec
from pft_ray.ledger.budget import Envelope
from pft_ray.ledger.entries import SCHEMA_VERSION, Entry, Position
from pft_ray.ledger.expiry import ReservationClock
from pft_ray.ledger.filters import FilterSpec
from pft_ray.ledger.joint import JointRun, joint_envelope
from pft_ray.ledger.ledger import Ledger
from pft_ray.ledger.observers import BudgetEvent, Observers
from pft_ray.ledger.queue import LedgerQueue, WaitingRun
from pft_ray.ledger.records import FINAL_STATUSES, Dataset
from pft_ray.ledger.registration import KEY_FILE, dataset_commitment
from pft_ray.ledger.shares import RhoShare
from pft_ray.ledger.state import LedgerState, apply
from pft_ray.ledger.status import BlockStatus, RunStatus
from pft_ray.ledger.verify import Verification, verify

__all__ = [
    "FINAL_STATUSES",
    "KEY_FILE",
    "SCHEMA_VERSION",
    "Anchor",
    "BlockSpec",
    "BlockStatus",
    "BudgetEvent",
    "Dataset",
    "Entry",
    "Envelope",
    "FilterSpec",
    "JointRun",
    "Ledger",
    "LedgerQueue",
    "LedgerState",
    "Observers",
    "Position",
    "ReservationClock",
    "RhoShare",
    "RunStatus",
    "Verification",
    "WaitingRun",
    "apply",
    "dataset_commitment",
    "joint_envelope",
    "read_anchors",
    "verify",
    "write_anchor",
]
