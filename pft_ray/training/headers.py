"""The header of a checkpoint: where it stands in its run and in the ledger.

Free of torch, so that claims about the ledger can be collected without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.errors import LedgerStorageError, ResumeError

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT_VERSION = 1
STATE_FILE = "state.safetensors"
HEADER_FILE = "header.json"


@dataclass(frozen=True)
class CheckpointHeader:
    """Where a checkpoint stands in its run and in the ledger.

    Attributes:
        run_id: The run it belongs to.
        plan_digest: Digest of the plan it was made under.
        step: Planned steps its parameters have.
        attempt: Attempt that wrote it.
        ledger_id: The ledger's own id.
        sequence: Highest ledger row when it was written.
        root: Chain hash of that row.
    """

    run_id: str
    plan_digest: str
    step: int
    attempt: int
    ledger_id: str
    sequence: int
    root: str


def write_file(path: Path, content: bytes) -> None:
    """Writes a file through a temporary one, fsync and rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise LedgerStorageError(
            f"{path.name} cannot be written: {error.strerror}.",
            "Free space on the disk; the run resumes from its last checkpoint.",
        ) from None


def read_header(folder: Path) -> tuple[CheckpointHeader, str]:
    """Reads a checkpoint's header and the digest of its state.

    Raises:
        ResumeError: The header is missing, damaged or of another version.
    """
    try:
        fields: dict[str, Any] = json.loads((folder / HEADER_FILE).read_bytes())
        version, digest = fields.pop("version"), fields.pop("state_sha256")
        header = CheckpointHeader(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ResumeError(
            f"The checkpoint {folder.name} has no readable header.",
            "Remove that folder; the run resumes from the checkpoint before it.",
        ) from None
    if version != CHECKPOINT_VERSION:
        raise ResumeError(
            f"The checkpoint {folder.name} has version {version}; this pft_ray "
            f"reads {CHECKPOINT_VERSION}.",
            "Use the pft_ray version that wrote it.",
        )
    return header, str(digest)


def read_whole(folder: Path) -> CheckpointHeader:
    """Reads a checkpoint's header and checks that its state is what was written.

    Raises:
        ResumeError: Header or state is missing or damaged.
    """
    header, digest = read_header(folder)
    try:
        found = hashlib.sha256((folder / STATE_FILE).read_bytes()).hexdigest()
    except OSError:
        found = ""
    if found != digest:
        raise ResumeError(
            f"The checkpoint {folder.name} is damaged: its state is not what was "
            "written.",
            "Remove that folder; the run resumes from the checkpoint before it.",
        )
    return header
