"""A worker's data: read, check against the registration, cut to its shard."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pft_ray.accounting.owners import owners_of_rank
from pft_ray.accounting.tolerance import num_parties
from pft_ray.cluster.model_check import check_model
from pft_ray.cluster.specs import block_predicates, owner_rule
from pft_ray.data.owners import with_owners
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.prepare import PreparedData, prepare_data
from pft_ray.data.tokenize import (
    check_some_tokens,
    load_tokenizer,
    tokenize_table,
)
from pft_ray.data.users import UserGroups, cap_records, group_users
from pft_ray.errors import DataError, InputError
from pft_ray.ledger import dataset_commitment

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pft_ray.accounting.plan import Plan
    from pft_ray.config import JobSpec
    from pft_ray.data.prepare import Records
    from pft_ray.data.tokens import TokenTable
    from pft_ray.ledger import Dataset, Ledger


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
        groups: Which rows belong to which user, when users are sampled.
    """

    train: TokenTable
    validation: TokenTable | None
    notes: dict[str, Any]
    groups: UserGroups | None = None

    @property
    def unit_digests(self) -> NDArray[np.uint8]:
        """Digests of what a step samples: users, or records."""
        return self.train.digests if self.groups is None else self.groups.digests

    @property
    def unit_owners(self) -> NDArray[np.int64] | None:
        """Number of the owner of each of those units; None without owners."""
        owners = self.train.owners
        if owners is None or self.groups is None:
            return owners
        return owners[self.groups.starts[:-1]]  # a user's records have one owner


def shard_of(digests: NDArray[np.uint8], rank: int, world: int) -> NDArray[np.int64]:
    """Returns the positions of the units that ``rank`` of ``world`` owns.

    A unit's owner is a function of its own digest, so none moves when another
    leaves; a unit lies on one rank whole.
    """
    owners = np.ascontiguousarray(digests[:, 8:16]).view("<u8")[:, 0] % np.uint64(world)
    return np.flatnonzero(owners == rank).astype(np.int64)


def owner_shard(
    owners: NDArray[np.int64],
    digests: NDArray[np.uint8],
    *,
    rank: int,
    world: int,
    num_owners: int,
) -> NDArray[np.int64]:
    """Returns the positions of the units that lie on ``rank`` when units have owners.

    A rank holds units of the owners that it serves and of no other; several ranks of
    one owner cut its units among them.
    """
    mine = []
    for owner in owners_of_rank(rank, world, num_owners):
        ranks = [
            r for r in range(world) if owner in owners_of_rank(r, world, num_owners)
        ]
        own = np.flatnonzero(owners == owner)
        part = shard_of(digests[own], ranks.index(rank), len(ranks))
        mine.append(own[part])
    return np.sort(np.concatenate(mine)).astype(np.int64)


def _registered(
    job: JobSpec, base_dir: Path, key: bytes, commitment: str
) -> PreparedData:
    prepared = prepare_data(job.data_spec(base_dir), key)
    if dataset_commitment(key, dict(prepared.fingerprints)) != commitment:
        raise DataError(
            f"The data at {job.data.path} are not those registered as "
            f"{job.data.registration!r}.",
            "Restore the registered file, or register the new one under another "
            "name: `pft budget create` with another data.registration.",
        )
    return prepared


def load_inputs(
    job: JobSpec,
    base_dir: Path,
    source: KeySource,
    *,
    rank: int,
    world: int,
    plan: Plan | None = None,
) -> Inputs:
    """Reads and tokenises what ``rank`` needs.

    With a plan that samples users, a user's records lie on one rank, side by side.

    Raises:
        DataError: The data cannot be read or are not those that were registered.
    """
    commitment = source.dataset_commitment(job.data.registration)
    prepared = _registered(job, base_dir, source.data_key(), commitment)
    tokenizer = load_tokenizer(resolve_model_path(job.model.path, base_dir))
    length, task = job.data.max_length, job.model.task
    train, held_out = capped_blocks(prepared, job)
    owners, unowned = None if plan is None else plan.owners, 0
    if owners is not None:
        train, unowned = with_owners(train, owner_rule(job))
    table, dropped = tokenize_table(train, tokenizer, length, task)
    notes = prepared.operator_notes()
    notes["dropped_by_tokenizer"] = dropped.to_dict()
    if owners is not None:
        notes["without_a_declared_owner"] = unowned
    validation = None
    if rank == 0 and job.evaluation is not None:
        validation, _ = tokenize_table(held_out, tokenizer, length, task)
    user = None if plan is None else plan.user
    by_users = user is not None and user.kind == "uls"
    units = table.users if by_users else table.digests
    assert units is not None
    if plan is not None and plan.independent_workers > 1:
        places = np.arange(len(units), dtype=np.int64)  # each draws from all units
    elif owners is None:
        places = shard_of(units, rank, world)
    else:
        assert table.owners is not None
        assert plan is not None
        places = owner_shard(
            table.owners,
            units,
            rank=rank,
            world=num_parties(plan, world),
            num_owners=len(owners.members),
        )
    if not by_users:
        return Inputs(table.take(places), validation, notes)
    shard, groups = group_users(table.take(places))
    return Inputs(shard, validation, notes, groups)


def capped_blocks(prepared: PreparedData, job: JobSpec) -> tuple[Records, Records]:
    """Returns the training and the validation records that a job uses.

    Guarantee:
        When the unit is the user, adding or removing one user adds or removes at most
        ``max_records_per_user`` training records and at most one validation record,
        and changes no other: a look, which counts validation records, has the
        sensitivity of a single record for users too.
    """
    most = job.privacy.max_records_per_user
    if job.privacy.unit == "record" or most is None:
        return prepared.train, prepared.validation
    return cap_records(prepared.train, most), cap_records(prepared.validation, 1)


def check_inputs(job: JobSpec, base_dir: Path, ledger: Ledger) -> PreparedData:
    """Looks at everything once in the driver, so that what is wrong is said early.

    Raises:
        InputError: The output folder cannot be written, or a block is cut otherwise
            than the job cuts its data.
        UnknownBlockError: A block is not there.
        DataError: The data cannot be read, are not those that were registered, or
            have nothing to learn from in any record.
        ModelError: The model or its tokenizer does not suit the job.
    """
    _check_output(base_dir / job.output)
    dataset = _registration(job, ledger)
    _check_blocks(job, ledger)
    tokenizer = check_model(job, base_dir)
    key, commitment = ledger.fingerprint_key(), dataset.commitment
    prepared = _registered(job, base_dir, key, commitment)
    length, task = job.data.max_length, job.model.task
    check_some_tokens(prepared.train, tokenizer, length, task)
    return prepared


def _check_output(output: Path) -> None:
    place = output
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"Runs cannot be written to {output}: {place} is no folder that can be "
            "written.",
            "Name another folder as output.",
        )


def _registration(job: JobSpec, ledger: Ledger) -> Dataset:
    known = {dataset.name: dataset for dataset in ledger.datasets()}
    dataset = known.get(job.data.registration)
    if dataset is None or dataset.public != job.data.public:
        found = "not registered" if dataset is None else f"public: {dataset.public}"
        raise DataError(
            f"The data set {job.data.registration!r} is {found}, but the job says "
            f"public: {job.data.public}.",
            "Create it with `pft budget create JOB.yaml`, or correct data.public.",
        )
    return dataset


def _check_blocks(job: JobSpec, ledger: Ledger) -> None:
    """Refuses blocks that hold other units than the job's own split puts there.

    Guarantee:
        What a run does to a unit is charged to a block that the unit lies in: the
        block is cut from the same registration by the same public predicate, with
        owners by that of the unit's owner.
    """
    for name, wanted in block_predicates(job).items():
        status = ledger.block_status(name)
        if status.dataset != job.data.registration:
            raise InputError(
                f"Block {name!r} is cut from {status.dataset!r}, the job reads "
                f"{job.data.registration!r}.",
                "Name a block of the job's own registration.",
                {"block": name},
            )
        if status.predicate != wanted:
            different = sorted(
                key
                for key in status.predicate.keys() | wanted.keys()
                if status.predicate.get(key) != wanted.get(key)
            )
            raise InputError(
                f"Block {name!r} is cut otherwise than the job cuts its data: "
                f"{', '.join(different)} differ.",
                "Use the split that the block was created with, or create blocks of "
                "other names.",
                {"block": name},
            )
