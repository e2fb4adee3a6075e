"""Checkpoints: safetensors plus a header that names the ledger's position.

A checkpoint holds parameters and optimiser moments, which are functions of private
gradients alone. It never holds a budget: what was spent is read from the ledger.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pft_ray.errors import ResumeError
from pft_ray.training.headers import (
    CHECKPOINT_VERSION,
    HEADER_FILE,
    STATE_FILE,
    CheckpointHeader,
    read_header,
    write_file,
)

if TYPE_CHECKING:
    from pathlib import Path


def write_checkpoint(
    folder: Path, tensors: dict[str, torch.Tensor], header: CheckpointHeader
) -> None:
    """Writes a checkpoint into an existing folder; the header comes last."""
    state = save_tensors({k: v.detach().contiguous() for k, v in tensors.items()})
    fields = asdict(header) | {
        "version": CHECKPOINT_VERSION,
        "state_sha256": hashlib.sha256(state).hexdigest(),
    }
    write_file(folder / STATE_FILE, state)
    write_file(folder / HEADER_FILE, json.dumps(fields, sort_keys=True).encode())


def read_checkpoint(
    folder: Path, plan_digest: str
) -> tuple[dict[str, torch.Tensor], CheckpointHeader]:
    """Reads a checkpoint of the plan ``plan_digest``.

    Raises:
        ResumeError: It is damaged or belongs to another plan.
    """
    header, digest = read_header(folder)
    if header.plan_digest != plan_digest:
        raise ResumeError(
            f"The checkpoint {folder.name} was made under another plan.",
            "Resume with the job file it was made with.",
        )
    try:
        state = (folder / STATE_FILE).read_bytes()
        if hashlib.sha256(state).hexdigest() != digest:
            raise ResumeError(
                f"The checkpoint {folder.name} is damaged: its state changed after "
                "it was written.",
                "Remove that folder; the run resumes from the checkpoint before it.",
            )
        return load_tensors(state), header
    except (OSError, SafetensorError):
        raise ResumeError(
            f"The checkpoint {folder.name} has no readable state.",
            "Remove that folder; the run resumes from the checkpoint before it.",
        ) from None


def part_of(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors whose names start with ``prefix``, named without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


@torch.no_grad()
def put_back(
    own: dict[str, torch.nn.Parameter],
    stored: dict[str, torch.Tensor],
    spared: set[str],
) -> None:
    """Copies a checkpoint's parameters into a model's own.

    Args:
        own: The model's parameters that training may have changed.
        stored: The checkpoint's.
        spared: Names that the checkpoint may leave out: nothing changed them.

    Raises:
        ResumeError: Names or shapes differ; nothing was copied.
    """
    fits = set(own) - spared <= set(stored) <= set(own)
    if not fits or any(stored[n].shape != own[n].shape for n in stored):
        raise ResumeError(
            "The checkpoint holds other parameters than this model trains.",
            "Resume with the job file it was made with, on a freshly loaded model.",
        )
    for name, value in stored.items():
        own[name].copy_(value)
