"""The durable privacy ledger: budgets, reservations, charges, and their proof.

``Ledger`` is the way in; ``verify`` checks a ledger from its raw rows; anchors prove
that no tail was lost.
"""

from pft_ray.ledger.anchor import Anchor, read_anchors, write_anchor
from pft_ray.ledger.bodies import BlockSpec
from pft_ray.ledger.budget import Envelope
from pft_ray.ledger.entries import SCHEMA_VERSION, Entry, Position
from pft_ray.ledger.expiry import ReservationClock
from pft_ray.ledger.ledger import Ledger
from pft_ray.ledger.queue import LedgerQueue, WaitingRun
from pft_ray.ledger.records import FINAL_STATUSES, Dataset
from pft_ray.ledger.registration import KEY_FILE, dataset_commitment
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
    "Dataset",
    "Entry",
    "Envelope",
    "Ledger",
    "LedgerQueue",
    "LedgerState",
    "Position",
    "ReservationClock",
    "RunStatus",
    "Verification",
    "WaitingRun",
    "apply",
    "dataset_commitment",
    "read_anchors",
    "verify",
    "write_anchor",
]
