"""A worker's data: read, check against the registration, cut to its shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pft_ray.cluster.specs import data_spec
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.prepare import PreparedData, prepare_data
from pft_ray.data.tokenize import load_tokenizer, tokenize_table
from pft_ray.errors import DataError
from pft_ray.ledger import dataset_commitment

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pft_ray.config import JobSpec
    from pft_ray.data.tokens import TokenTable
    from pft_ray.ledger import Ledger


class KeySource(Protocol):
    """Who gives a worker the key of unit digests and the registration's commitment."""

    def data_key(self) -> bytes:
        """Returns the 32-byte key of unit digests."""

    def dataset_commitment(self, name: str) -> str:
        """Returns the keyed commitment of a registered data set."""


@dataclass(frozen=True)
class Inputs:
    """What one rank holds.

    Attributes:
        train: Its shard of the training block.
        validation: The validation block, on rank 0 only.
        notes: Drops and true sizes, for operator.json.
    """

    train: TokenTable
    validation: TokenTable | None
    notes: dict[str, Any]


def shard_of(digests: NDArray[np.uint8], rank: int, world: int) -> NDArray[np.int64]:
    """Returns the positions of the units that ``rank`` of ``world`` owns.

    A unit's owner is a function of its own digest, so none moves when another
    leaves; a unit lies on one rank whole.
    """
    owners = np.ascontiguousarray(digests[:, 8:16]).view("<u8")[:, 0] % np.uint64(world)
    return np.flatnonzero(owners == rank).astype(np.int64)


def _registered(
    job: JobSpec, base_dir: Path, key: bytes, commitment: str
) -> PreparedData:
    prepared = prepare_data(data_spec(job, base_dir), key)
    if dataset_commitment(key, dict(prepared.fingerprints)) != commitment:
        raise DataError(
            f"The data at {job.data.path} are not those registered as "
            f"{job.data.registration!r}.",
            "Restore the registered file, or register the new one under another "
            "name: `pft budget create` with another data.registration.",
        )
    return prepared


def load_inputs(
    job: JobSpec, base_dir: Path, source: KeySource, *, rank: int, world: int
) -> Inputs:
    """Reads and tokenises what ``rank`` needs.

    Raises:
        DataError: The data cannot be read or are not those that were registered.
    """
    commitment = source.dataset_commitment(job.data.registration)
    prepared = _registered(job, base_dir, source.data_key(), commitment)
    tokenizer = load_tokenizer(resolve_model_path(job.model.path, base_dir))
    length, task = job.data.max_length, job.model.task
    table, dropped = tokenize_table(prepared.train, tokenizer, length, task)
    notes = prepared.operator_notes()
    notes["dropped_by_tokenizer"] = dropped.to_dict()
    validation = None
    if rank == 0 and job.evaluation is not None:
        validation, _ = tokenize_table(prepared.validation, tokenizer, length, task)
    shard = table.take(shard_of(table.digests, rank, world))
    return Inputs(shard, validation, notes)


def check_inputs(job: JobSpec, base_dir: Path, ledger: Ledger) -> PreparedData:
    """Reads the data once in the driver, so that what is wrong is said early.

    Raises:
        DataError: The data cannot be read or are not those that were registered.
        ModelError: The model's folder is missing.
    """
    resolve_model_path(job.model.path, base_dir)
    known = {dataset.name: dataset for dataset in ledger.datasets()}
    dataset = known.get(job.data.registration)
    if dataset is None or dataset.public != job.data.public:
        found = "not registered" if dataset is None else f"public: {dataset.public}"
        raise DataError(
            f"The data set {job.data.registration!r} is {found}, but the job says "
            f"public: {job.data.public}.",
            "Create it with `pft budget create JOB.yaml`, or correct data.public.",
        )
    return _registered(job, base_dir, ledger.fingerprint_key(), dataset.commitment)
