"""From a file to the units of the two blocks: read, judge, name, split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pft_ray.data.load import read_rows
from pft_ray.data.split import role_of
from pft_ray.data.units import (
    check_ids,
    registration_fingerprints,
    split_bytes,
    unit_digests,
)
from pft_ray.data.users import user_digests
from pft_ray.data.validate import (
    DUPLICATE,
    Content,
    Dropped,
    Record,
    validate_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pft_ray.data.spec import DataSpec
    from pft_ray.data.table import RawTable


@dataclass(frozen=True)
class Records:
    """Units of one block before they are tokenised, in the order of their digests.

    Attributes:
        contents: Text or messages of each unit.
        digests: uint8 (n, 16), distinct.
        numbers: Place of each in the file, from 1, for the operator.
        targets: int64 (n,) class indices, or None.
        users: uint8 (n, 16), digest of the user of each; None without a user column.
        owner_values: What decides the owner of each; None without owners.
        owners: int64 (n,), number of the owner of each, once it is decided.
    """

    contents: tuple[Content, ...]
    digests: NDArray[np.uint8]
    numbers: tuple[int, ...]
    targets: NDArray[np.int64] | None = None
    users: NDArray[np.uint8] | None = None
    owner_values: tuple[str, ...] | None = None
    owners: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.contents)

    def take(self, places: NDArray[np.int64]) -> Records:
        """Returns the records at ``places``, in that order."""
        return Records(
            contents=tuple(self.contents[place] for place in places.tolist()),
            digests=self.digests[places],
            numbers=tuple(self.numbers[place] for place in places.tolist()),
            targets=None if self.targets is None else self.targets[places],
            users=None if self.users is None else self.users[places],
            owner_values=None
            if self.owner_values is None
            else tuple(self.owner_values[place] for place in places.tolist()),
            owners=None if self.owners is None else self.owners[places],
        )


@dataclass(frozen=True)
class PreparedData:
    """A file, ready: both blocks, fingerprints for the ledger, operator's findings.

    Attributes:
        train: Units of the training block.
        validation: Units of the validation block.
        fingerprints: By namespace, for the registration in the ledger.
        dropped: Faulty records; for operator.json only.
        spec: The data section it follows.
    """

    train: Records
    validation: Records
    fingerprints: Mapping[str, NDArray[np.uint8]]
    dropped: Dropped
    spec: DataSpec

    def sizes(self) -> dict[str, dict[str, int | None]]:
        """Returns declared and true block sizes, for operator.json only.

        A difference is a warning for the operator. It is never a refusal, a
        normaliser or an exported number: the plan uses the declared size.
        """
        return {
            "train": {"declared": self.spec.num_train, "found": len(self.train)},
            "validation": {
                "declared": self.spec.num_validation,
                "found": len(self.validation),
            },
        }

    def operator_notes(self) -> dict[str, Any]:
        """Returns what operator.json says about the data, as JSON."""
        return {"dropped": self.dropped.to_dict(), "sizes": self.sizes()}


def prepare_data(spec: DataSpec, fingerprint_key: bytes) -> PreparedData:
    """Reads the file of a job and cuts it into its two blocks.

    Args:
        spec: The job's data section.
        fingerprint_key: 32-byte key that is kept with the ledger.

    Raises:
        DataError: The file cannot be read, or something is wrong with all of it.

    Guarantee:
        With ``deduplicate: none`` or ``beforehand``, adding or removing one record
        of the file adds or removes at most that unit in one block and changes no
        other unit, digest or block (1-stable). With ``exact`` the record that is
        removed may have hidden an equal one, which then appears, perhaps in the
        other block: two units change. The spec's relation_domain says so:
        ``prepared`` means that the guarantee is about the prepared list.
    """
    table = read_rows(spec.path, spec.columns, spec.format)
    return prepare_table(table, spec, fingerprint_key)


def prepare_table(
    table: RawTable, spec: DataSpec, fingerprint_key: bytes
) -> PreparedData:
    """Does what :func:`prepare_data` does after reading."""
    check_ids(table, spec)
    records, dropped = validate_table(table, spec)
    records = _inside(records, spec)
    digests = unit_digests(records, spec, fingerprint_key)
    if spec.deduplicate == "exact":
        kept = _first_of_equals(records, digests)
        gone = [r.number for place, r in enumerate(records) if place not in kept]
        dropped += Dropped.from_pairs([(number, DUPLICATE) for number in gone])
    else:
        kept = set(range(len(records)))
    order = [p for p in np.lexsort(digests.T[::-1]).tolist() if p in kept]
    whole = _records(records, digests, spec, fingerprint_key)
    roles = {p: role_of(split_bytes(records[p]), spec.split) for p in order}
    return PreparedData(
        train=whole.take(np.asarray([p for p in order if roles[p] == "train"], int)),
        validation=whole.take(
            np.asarray([p for p in order if roles[p] == "validation"], int)
        ),
        fingerprints=registration_fingerprints(table, spec, fingerprint_key),
        dropped=dropped,
        spec=spec,
    )


def _inside(records: list[Record], spec: DataSpec) -> list[Record]:
    """Returns the records of the job's window: each is judged by itself."""
    window = spec.split.window
    if window is None:
        return records
    return [r for r in records if r.moment is not None and window.holds(r.moment)]


def _first_of_equals(records: list[Record], digests: NDArray[np.uint8]) -> set[int]:
    """Returns the places to keep: of equal content and class, the smallest digest."""
    best: dict[tuple[Content, int | None], tuple[bytes, int]] = {}
    for place, record in enumerate(records):
        key = (record.content, record.target)
        entry = (digests[place].tobytes(), place)
        if key not in best or entry < best[key]:
            best[key] = entry
    return {place for _, place in best.values()}


def _records(
    records: list[Record],
    digests: NDArray[np.uint8],
    spec: DataSpec,
    fingerprint_key: bytes,
) -> Records:
    labelled = any(record.target is not None for record in records)
    targets = [record.target for record in records]
    users = [str(record.user) for record in records]
    return Records(
        contents=tuple(record.content for record in records),
        digests=digests,
        numbers=tuple(record.number for record in records),
        targets=np.asarray(targets, dtype=np.int64) if labelled else None,
        users=user_digests(users, fingerprint_key) if spec.user else None,
        owner_values=tuple(str(record.owner_value) for record in records)
        if spec.owner
        else None,
    )
