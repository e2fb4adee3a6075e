"""Fingerprints of data sets: keyed digests of unit ids, and the commitment to them.

A fingerprint is an HMAC of (namespace, unit id) under a key that never leaves the
ledger's key folder: without the key neither a fingerprint nor the commitment tells
whether somebody is in the data.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import numpy as np

from pft_ray.crypto import keyed_digest, load_or_create_key
from pft_ray.errors import InputError, LedgerError
from pft_ray.ledger.entries import label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pft_ray.ledger.records import Dataset
    from pft_ray.ledger.state import LedgerState
    from pft_ray.ledger.store import Store

KEY_FILE = "fingerprint.key"
FINGERPRINT_BYTES = 16
_DATASET = b"pft-ray/dataset/1"
_CHECK = b"pft-ray/key-check/1"


def sorted_fingerprints(
    namespaces: Mapping[str, NDArray[np.uint8]],
) -> dict[str, bytes]:
    """Returns the fingerprints of each namespace, sorted and laid end to end.

    Args:
        namespaces: Name to a uint8 array of shape (n, 16), one row a unit.

    Raises:
        InputError: No namespace or no unit, another shape or type, or a unit twice.
    """
    if not namespaces:
        raise InputError(
            "A data set without unit ids.", "Fingerprint at least one namespace."
        )
    return {
        label(name, "A namespace"): _sorted_rows(name, namespaces[name])
        for name in sorted(namespaces)
    }


def _sorted_rows(name: str, rows: NDArray[np.uint8]) -> bytes:
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != FINGERPRINT_BYTES:
        raise InputError(
            f"Fingerprints of {name!r} are {rows.dtype} of shape {rows.shape}.",
            f"Give a uint8 array of shape (n, {FINGERPRINT_BYTES}).",
        )
    if not len(rows):
        raise InputError(f"The data set has no unit in {name!r}.")
    words = np.ascontiguousarray(rows).view(">u8")
    ordered = words[np.lexsort((words[:, 1], words[:, 0]))]
    if np.any(np.all(ordered[1:] == ordered[:-1], axis=1)):
        raise InputError(
            f"Two units of {name!r} have the same id.",
            "Ids have to be distinct: units that share one are always drawn together.",
        )
    return ordered.tobytes()


def insert_fingerprints(
    store: Store, dataset: str, packed: Mapping[str, bytes]
) -> None:
    """Adds the fingerprints of a data set, inside the transaction that registers it."""
    for namespace, rows in packed.items():
        starts = range(0, len(rows), FINGERPRINT_BYTES)
        digests = [rows[start : start + FINGERPRINT_BYTES] for start in starts]
        store.insert_fingerprints(dataset, namespace, digests)


def dataset_commitment(key: bytes, namespaces: Mapping[str, NDArray[np.uint8]]) -> str:
    """Returns the HMAC over all fingerprints, hex; it does not depend on their order.

    Args:
        key: The ledger's fingerprint key.
        namespaces: Name to a uint8 array of shape (n, 16), as for registration.
    """
    return packed_commitment(key, sorted_fingerprints(namespaces))


def packed_commitment(key: bytes, packed: Mapping[str, bytes]) -> str:
    """Returns the HMAC over fingerprints that are sorted and laid end to end."""
    parts: list[bytes] = []
    for name in sorted(packed):
        parts += [name.encode(), packed[name]]
    return keyed_digest(key, _DATASET, *parts).hex()


def key_check(key: bytes, ledger_id: str) -> str:
    """Returns what tells the ledger's fingerprint key from another one, hex."""
    return keyed_digest(key, _CHECK, ledger_id.encode()).hex()


def require_key(key: bytes, ledger_id: str, wanted: str | None) -> bytes:
    """Returns the key if the ledger's registrations were made under it.

    Raises:
        LedgerError: They were made under another key.
    """
    if wanted is not None and not hmac.compare_digest(
        key_check(key, ledger_id), wanted
    ):
        raise LedgerError(
            "The fingerprint key is not the one this ledger was used with.",
            "Restore the key file: under another key overlaps are not found.",
        )
    return key


def find_key(folder: Path | None, ledger_id: str, wanted: str | None) -> bytes:
    """Returns the fingerprint key in a folder, made there on a ledger's first use.

    Raises:
        LedgerError: There is no folder, or the key was lost or is another one.
    """
    if folder is None:
        raise LedgerError(
            "The ledger was opened without a key folder.",
            "Give the folder of the fingerprint key.",
        )
    path = folder / KEY_FILE
    if wanted is not None and not path.exists():
        raise LedgerError(
            f"The fingerprint key {path} is missing.",
            "Restore it: without it overlaps between data sets are not found.",
        )
    return require_key(load_or_create_key(path), ledger_id, wanted)


def require_same(known: Dataset, body: Mapping[str, Any]) -> None:
    """Checks that a name that is taken was registered with the same data.

    Raises:
        InputError: It has other data, or is public where now private is said.
    """
    if known.public != body["public"]:
        raise InputError(
            f"Data set {known.name!r} is registered as "
            f"{'public' if known.public else 'private'}; that never changes.",
            "Register it under another name.",
            {"dataset": known.name},
        )
    if list(known.namespaces) != body["namespaces"]:
        raise InputError(
            f"Data set {known.name!r} is registered with other data: by "
            f"{', '.join(known.namespaces)}, not by {', '.join(body['namespaces'])}.",
            "Use the id, user, split, owner and window columns of the registration, or "
            "register it under another name.",
            {"dataset": known.name},
        )
    if known.commitment != body["commitment"]:
        raise InputError(
            f"Data set {known.name!r} is registered with other data.",
            "Register new data under another name.",
            {"dataset": known.name},
        )


def refuse_overlap(state: LedgerState, name: str, others: Iterable[str]) -> None:
    """Refuses a private data set that shares units with another private one.

    Raises:
        InputError: It does; the message names the other one and no count.
    """
    for other in sorted(others):
        if not state.datasets[other].public:
            raise InputError(
                f"Data set {name!r} shares units with {other!r}.",
                "Cut blocks from the registration that exists, or remove the units.",
                {"dataset": name, "overlaps": other},
            )
