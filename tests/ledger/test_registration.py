"""Data sets: same data is a no-op, overlapping private data is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pft_ray.crypto import keyed_digest
from pft_ray.errors import InputError, LedgerError
from pft_ray.ledger import KEY_FILE, Ledger, dataset_commitment
from tests.ledger.builders import fingerprints, open_ledger


def register(ledger, name, start=0, count=50, *, public=False, namespace="record"):
    return ledger.register_dataset(
        name,
        public=public,
        namespaces={namespace: fingerprints(start, count)},
        facts={"n": 1},
    )


def test_the_same_data_under_the_same_name_is_a_no_op(empty_ledger):
    assert register(empty_ledger, "mail") is True
    before = empty_ledger.position()
    shuffled = fingerprints(0, 50)[np.random.default_rng(0).permutation(50)]
    assert not empty_ledger.register_dataset(
        "mail", public=False, namespaces={"record": shuffled}, facts={"n": 2}
    )
    assert empty_ledger.position() == before
    assert empty_ledger.dataset("mail").facts == {"n": 1}
    assert [d.name for d in empty_ledger.datasets()] == ["mail"]


@pytest.mark.parametrize(
    "change",
    [{"count": 49}, {"count": 51}, {"start": 1}, {"namespace": "other"}],
)
def test_other_data_under_the_same_name_is_refused(empty_ledger, change):
    register(empty_ledger, "mail")
    before = empty_ledger.position()
    with pytest.raises(InputError, match="other data"):
        register(empty_ledger, "mail", **change)
    assert empty_ledger.position() == before


def test_public_never_changes(empty_ledger):
    register(empty_ledger, "mail")
    with pytest.raises(InputError, match="never changes"):
        register(empty_ledger, "mail", public=True)
    register(empty_ledger, "open", 500, public=True)
    with pytest.raises(InputError, match="never changes"):
        register(empty_ledger, "open", 500)


def test_a_copy_under_another_name_is_refused_without_a_count(empty_ledger):
    register(empty_ledger, "mail")
    before = empty_ledger.position()
    with pytest.raises(InputError) as caught:
        register(empty_ledger, "mail2", start=49)
    assert caught.value.details == {"dataset": "mail2", "overlaps": "mail"}
    assert not any(character.isdigit() for character in caught.value.message[20:])
    assert empty_ledger.position() == before
    assert empty_ledger._chain.store.fingerprinted() == [("mail", "record")]
    register(empty_ledger, "mail2", start=50)


def test_public_data_and_other_namespaces_may_overlap(empty_ledger):
    register(empty_ledger, "mail")
    register(empty_ledger, "open", public=True)
    register(empty_ledger, "users", namespace="user")
    register(empty_ledger, "more", start=100)
    register(empty_ledger, "again", start=0, public=True)


def test_private_data_may_overlap_public_data_registered_before(empty_ledger):
    register(empty_ledger, "open", public=True)
    register(empty_ledger, "mail", start=10)
    with pytest.raises(InputError):
        register(empty_ledger, "mail2", start=10)


def test_one_of_several_namespaces_is_enough_to_overlap(empty_ledger):
    register(empty_ledger, "users", 7, 1, namespace="user")
    with pytest.raises(InputError, match="users"):
        empty_ledger.register_dataset(
            "mail",
            public=False,
            namespaces={"record": fingerprints(0, 20), "user": fingerprints(5, 5)},
            facts={},
        )


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 16), np.uint8),
        np.zeros((2, 16), np.uint8),
        np.zeros((1, 15), np.uint8),
        np.zeros((1, 16), np.int64),
        np.zeros(16, np.uint8),
    ],
    ids=["none", "twice", "short", "type", "shape"],
)
def test_refuses_fingerprints_that_are_not_distinct_rows(empty_ledger, rows):
    with pytest.raises(InputError):
        empty_ledger.register_dataset(
            "mail", public=False, namespaces={"record": rows}, facts={}
        )


def test_digests_that_end_in_zero_bytes_are_distinct(empty_ledger):
    rows = np.zeros((3, 16), np.uint8)
    rows[1, 0], rows[2, 7] = 1, 1
    empty_ledger.register_dataset(
        "mail", public=False, namespaces={"record": rows}, facts={}
    )
    with pytest.raises(InputError, match="shares"):
        empty_ledger.register_dataset(
            "zero", public=False, namespaces={"record": rows[:1]}, facts={}
        )


def test_refuses_a_data_set_without_namespaces(empty_ledger):
    with pytest.raises(InputError):
        empty_ledger.register_dataset("mail", public=False, namespaces={}, facts={})


def test_facts_are_plain_json(empty_ledger):
    with pytest.raises(InputError):
        empty_ledger.register_dataset(
            "mail",
            public=False,
            namespaces={"record": fingerprints(0, 1)},
            facts={"x": float("nan")},
        )


def test_the_commitment_is_a_mac_over_sorted_fingerprints(empty_ledger):
    register(empty_ledger, "mail", 0, 3)
    key = empty_ledger.fingerprint_key()
    rows = sorted(fingerprints(0, 3)[i].tobytes() for i in range(3))
    expected = keyed_digest(key, b"pft-ray/dataset/1", b"record", b"".join(rows)).hex()
    assert empty_ledger.dataset("mail").commitment == expected
    namespaces = {"record": fingerprints(0, 3)[::-1]}
    assert dataset_commitment(key, namespaces) == expected
    assert dataset_commitment(bytes(32), namespaces) != expected


def test_the_commitment_depends_on_the_namespace(empty_ledger):
    key = empty_ledger.fingerprint_key()
    rows = fingerprints(0, 3)
    seen = {
        dataset_commitment(key, {"a": rows}),
        dataset_commitment(key, {"b": rows}),
        dataset_commitment(key, {"a": rows, "b": rows}),
        dataset_commitment(key, {"a": rows[:2]}),
    }
    assert len(seen) == 4


def test_the_key_belongs_to_the_ledger(tmp_path):
    with open_ledger(tmp_path) as ledger:
        key = ledger.fingerprint_key()
        assert ledger.fingerprint_key() == key
        assert (tmp_path / "keys" / KEY_FILE).read_bytes() == key
        register(ledger, "mail")
    with open_ledger(tmp_path) as ledger:
        assert ledger.fingerprint_key() == key


def test_a_lost_key_is_never_made_again(tmp_path):
    """A new key would find no overlap at all."""
    with open_ledger(tmp_path) as ledger:
        register(ledger, "mail")
        (tmp_path / "keys" / KEY_FILE).unlink()
        with pytest.raises(LedgerError, match="missing"):
            ledger.fingerprint_key()
        with pytest.raises(LedgerError, match="missing"):
            register(ledger, "copy")
        assert not (tmp_path / "keys" / KEY_FILE).exists()


def test_another_key_is_refused(tmp_path):
    with open_ledger(tmp_path) as ledger:
        register(ledger, "mail")
        (tmp_path / "keys" / KEY_FILE).write_bytes(bytes(32))
        with pytest.raises(LedgerError, match="not the one"):
            register(ledger, "copy")


def test_needs_a_key_folder(tmp_path):
    with (
        Ledger.open(tmp_path / "ledger.db", create=True) as ledger,
        pytest.raises(LedgerError, match="key folder"),
    ):
        register(ledger, "mail")
