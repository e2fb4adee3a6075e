"""A faulty record falls alone; only what holds for all records refuses a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.data import DataSpec, Dropped, RawTable, SplitSpec, prepare_table
from pft_ray.data.table import UNREADABLE
from pft_ray.data.validate import key_text, label_text, validate_table
from pft_ray.errors import DataError


def table_of(rows, **named):
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return RawTable("mail", columns, len(rows), tuple(names), **named)


def spec_of(**changes):
    fields = {
        "path": None,
        "num_train": 10,
        "text": "text",
        "label": "label",
        "labels": ("ham", "spam"),
    }
    return DataSpec(**{**fields, **changes})


FAULTY = [
    ({"text": None, "label": "ham"}, "not_text"),
    ({"text": 17, "label": "ham"}, "not_text"),
    ({"text": ["a"], "label": "ham"}, "not_text"),
    ({"text": "", "label": "ham"}, "empty"),
    ({"text": " \n\t", "label": "ham"}, "empty"),
    ({"text": "a\ud800b", "label": "ham"}, "bad_unicode"),
    ({"text": UNREADABLE, "label": "ham"}, "bad_unicode"),
    ({"text": "a", "label": None}, "missing_label"),
    ({"text": "a", "label": 1.5}, "missing_label"),
    ({"text": "a", "label": "Ham"}, "undeclared_label"),
    ({"text": "a", "label": 0}, "undeclared_label"),
    ({"text": "a", "label": True}, "undeclared_label"),
]


@pytest.mark.parametrize(("row", "reason"), FAULTY)
def test_a_faulty_record_is_dropped_alone_and_counted(row, reason):
    good = [{"text": "x", "label": "ham"}, {"text": "y", "label": "spam"}]
    records, dropped = validate_table(table_of([good[0], row, good[1]]), spec_of())
    assert [(r.number, r.content, r.target) for r in records] == [
        (1, "x", 0),
        (3, "y", 1),
    ]
    assert dropped.counts == {reason: 1}
    assert dropped.records == {reason: (2,)}


CHATS = [
    ([], "empty"),
    ("hello", "bad_messages"),
    ([["user", "hi"]], "bad_messages"),
    ([{"role": "assistant"}], "bad_messages"),
    ([{"role": "assistant", "content": None}], "bad_messages"),
    ([{"role": "", "content": "x"}], "bad_messages"),
    ([{"role": "assistant", "content": "\udfff"}], "bad_unicode"),
    ([{"role": "user", "content": "x"}], "no_assistant"),
    ([{"role": "assistant", "content": "  "}], "no_assistant"),
]


@pytest.mark.parametrize(("chat", "reason"), CHATS)
def test_a_faulty_chat_is_dropped_alone(chat, reason):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    spec = spec_of(text=None, messages="m", label=None, labels=())
    records, dropped = validate_table(table_of([{"m": chat}, {"m": good}]), spec)
    assert [r.content for r in records] == [(("user", "q"), ("assistant", "a"))]
    assert dropped.counts == {reason: 1}


@pytest.mark.parametrize(
    ("column", "fields", "reason"),
    [
        ("id", {"id": "id"}, "missing_id"),
        ("user", {"user": "user"}, "missing_user"),
        ("place", {"split": SplitSpec(field="place")}, "missing_split_field"),
    ],
)
@pytest.mark.parametrize("value", [None, "", 1.5, True, "\ud800"])
def test_a_record_without_its_id_or_field_is_dropped(column, fields, reason, value):
    rows = [
        {"text": "x", "label": "ham", column: "k"},
        {"text": "y", "label": "spam", column: value},
    ]
    records, dropped = validate_table(table_of(rows), spec_of(**fields))
    assert [r.number for r in records] == [1]
    assert dropped.counts == {reason: 1}


def test_labels_as_numbers_booleans_and_class_names():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    records, _ = validate_table(table_of(rows), spec_of(labels=("0", "1")))
    assert [r.target for r in records] == [1, 0]
    named = table_of(rows, class_names={"label": ("ham", "spam")})
    records, _ = validate_table(named, spec_of(labels=("spam", "ham")))
    assert [r.target for r in records] == [0, 1]
    records, _ = validate_table(named, spec_of(labels=("0", "1")))
    assert [r.target for r in records] == [1, 0]
    assert label_text(True) == "true"
    assert label_text(5, ("a", "b")) is None


def test_whole_numbers_and_their_text_are_the_same_id():
    assert key_text(7) == key_text("7") == "7"


def test_one_undeclared_label_refuses_nothing_but_all_do():
    good = {"text": "x", "label": "ham"}
    odd = {"text": "y", "label": "PRIVATE-LABEL"}
    _, dropped = validate_table(table_of([odd, odd, good]), spec_of())
    assert dropped.counts == {"undeclared_label": 2}
    with pytest.raises(DataError) as caught:
        validate_table(table_of([odd, odd]), spec_of())
    assert "'label'" in caught.value.message
    assert "['ham', 'spam']" in caught.value.message
    assert "PRIVATE" not in json.dumps(caught.value.to_dict())


def test_a_declared_label_that_no_record_has_is_no_error():
    rows = [{"text": "x", "label": "ham"}, {"text": "y", "label": "spam"}]
    records, _ = validate_table(table_of(rows), spec_of(labels=("spam", "new", "ham")))
    assert [r.target for r in records] == [2, 0]


BAD_SPECS = {
    "no content": {"text": None},
    "both contents": {"messages": "m"},
    "label without labels": {"labels": ()},
    "labels without label": {"label": None},
    "one class": {"labels": ("ham",)},
    "class twice": {"labels": ("ham", "ham", "spam")},
    "classified chat": {"text": None, "messages": "m"},
    "text is label": {"label": "text"},
    "text is id": {"id": "text"},
    "label is user": {"user": "label"},
    "no size": {"num_train": 0},
    "no validation size": {"num_validation": 0},
    "one token": {"max_length": 1},
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_contradictory_spec_is_refused(name):
    with pytest.raises(DataError):
        spec_of(**BAD_SPECS[name])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_split_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(DataError):
        SplitSpec(validation_fraction=fraction)


def test_an_empty_salt_is_refused():
    with pytest.raises(DataError):
        SplitSpec(salt="")


def test_dropped_adds_up_and_limits_its_numbers():
    one = Dropped.from_pairs([(3, "empty"), (1, "empty")], 2)
    two = Dropped.from_pairs([(2, "empty"), (9, "no_target")], 1)
    both = one + two
    assert both.records == {"empty": (1, 2, 3), "no_target": (9,)}
    assert both.num_truncated == 3
    assert both.to_dict(2) == {
        "counts": {"empty": 3, "no_target": 1},
        "num_truncated": 3,
        "records": {"empty": [1, 2], "no_target": [9]},
    }


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from(["ham", "spam", "\ud800", "a"]),
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content"]), st.text()), max_size=2
    ),
)
ROW = st.fixed_dictionaries({"text": VALUES, "label": VALUES, "user": VALUES})


@given(st.lists(ROW, max_size=6))
def test_whatever_stands_in_a_record_the_good_one_stays(rows):
    good = {"text": "good", "label": "spam", "user": "u"}
    spec = spec_of(user="user", split=SplitSpec(validation_fraction=0.0))
    data = prepare_table(table_of([*rows, good]), spec, bytes(32))
    assert "good" in data.train.contents
    assert len(data.train) + sum(data.dropped.counts.values()) == len(rows) + 1
