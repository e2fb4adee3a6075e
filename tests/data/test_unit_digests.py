"""Removing a unit removes its digest and touches no other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.crypto import keyed_digest
from pft_ray.data import (
    DataSpec,
    RawTable,
    Record,
    SplitSpec,
    registration_fingerprints,
    unit_digests,
)
from pft_ray.data.units import check_ids, content_bytes
from pft_ray.errors import DataError

KEY = bytes(range(32))
SPEC = DataSpec(path=None, num_train=1, text="text", label="label", labels=("a", "b"))
RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", "x\0y"]),
        st.sampled_from([0, 1]),
        st.sampled_from(["u", "v"]),
        st.sampled_from(["s", "t"]),
    ),
    min_size=1,
    max_size=12,
)


def records_of(values):
    return [
        Record(number, text, target, None, user, field)
        for number, (text, target, user, field) in enumerate(values, start=1)
    ]


def pairs(values):
    """Multiset of (digest, everything the job reads of the record)."""
    digests = unit_digests(records_of(values), SPEC, KEY)
    return Counter(zip((d.tobytes() for d in digests), values, strict=True))


@given(RECORDS, st.data())
def test_removing_a_record_removes_exactly_one_pair(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    whole = pairs(values)
    rest = pairs(values[:place] + values[place + 1 :])
    assert set(whole.values()) == {1}  # digests are distinct
    assert not rest - whole
    (gone,) = whole - rest
    assert gone[1] == values[place]


@given(RECORDS, st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert pairs(values) == pairs(shuffled)


def test_with_an_id_column_the_digest_is_the_keyed_digest_of_the_id():
    spec = DataSpec(path=None, num_train=1, text="text", id="key")
    records = [Record(1, "one", id="k1"), Record(2, "two", id="k2")]
    digests = unit_digests(records, spec, KEY)
    assert digests.dtype == np.uint8
    assert digests.shape == (2, 16)
    assert digests[1].tobytes() == keyed_digest(KEY, b"record:key", b"k2")
    other = unit_digests(records, spec, bytes(32))
    assert not np.array_equal(digests, other)


def test_the_digest_of_an_id_is_not_moved_by_content_or_place():
    spec = DataSpec(path=None, num_train=1, text="text", id="key")
    one = unit_digests([Record(1, "one", id="k"), Record(2, "b", id="l")], spec, KEY)
    two = unit_digests([Record(7, "changed", id="k")], spec, KEY)
    assert np.array_equal(one[0], two[0])


def test_a_text_and_the_chat_that_spells_it_differ():
    chat = (("user", "x"),)
    records = [Record(1, chat), Record(2, '[["user","x"]]')]
    assert len(np.unique(unit_digests(records, SPEC, KEY), axis=0)) == 2
    spellings = [chat, str(chat), "x", '"x"']
    assert len({content_bytes(content) for content in spellings}) == 4


def test_no_records_give_an_empty_array():
    assert unit_digests([], SPEC, KEY).shape == (0, 16)


def table_of(**columns):
    size = len(next(iter(columns.values())))
    return RawTable("mail", columns, size, tuple(columns))


def test_a_repeated_id_is_refused_and_not_shown():
    spec = DataSpec(path=None, num_train=1, text="text", id="id")
    table = table_of(text=["a", "b", "c"], id=["PRIVATE", "x", "PRIVATE"])
    with pytest.raises(DataError, match="records 1 and 3") as caught:
        check_ids(table, spec)
    assert "PRIVATE" not in str(caught.value.to_dict())
    check_ids(table_of(text=["a", "b"], id=[None, None]), spec)
    with pytest.raises(DataError, match="records 1 and 2"):
        check_ids(table_of(text=["a", "b"], id=[7, "7"]), spec)


def test_fingerprints_of_ids_and_users():
    spec = DataSpec(path=None, num_train=1, text="text", id="id", user="who")
    table = table_of(text=["a", "b", ""], id=[1, 2, 3], who=["ann", "bob", "ann"])
    found = registration_fingerprints(table, spec, KEY)
    assert list(found) == ["record:id", "user:who", "split:who"]
    assert found["split:who"].shape == (3, 16)
    expected = {keyed_digest(KEY, b"user:who", name) for name in (b"ann", b"bob")}
    assert {row.tobytes() for row in found["user:who"]} == expected
    # Dropped records are part of the registration: another job may read them.
    assert found["record:id"].shape == (3, 16)
    assert found["record:id"].tolist() == sorted(found["record:id"].tolist())


def test_a_copy_under_other_names_has_the_same_content_fingerprints():
    one = DataSpec(path=None, num_train=1, text="text", label="l", labels=("a", "b"))
    two = DataSpec(
        path=None, num_train=9, text="body", split=SplitSpec(field="place"), user="u"
    )
    table = table_of(text=["x", "y", "x", None], l=["a", "b", "a", "a"])
    copy = table_of(
        body=["x", "x", "y", 5], place=list("ppqq"), u=list("uvwx"), more=[1, 2, 3, 4]
    )
    first = registration_fingerprints(table, one, KEY)["record/content"]
    second = registration_fingerprints(copy, two, KEY)["record/content"]
    assert first.shape == (3, 16)
    assert np.array_equal(first, second)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.data())
def test_removing_a_record_removes_exactly_one_fingerprint(texts, data):
    spec = DataSpec(path=None, num_train=1, text="text")
    place = data.draw(st.integers(0, len(texts) - 1))

    def rows(values):
        table = RawTable("m", {"text": values}, len(values), ("text",))
        found = registration_fingerprints(table, spec, KEY)["record/content"]
        return {row.tobytes() for row in found}

    whole, rest = rows(texts), rows(texts[:place] + texts[place + 1 :])
    assert rest < whole
    assert len(whole) == len(texts)
    assert len(rest) == len(texts) - 1
