"""A unit's block depends on its own value and the public split alone."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pft_ray.data import DataSpec, RawTable, SplitSpec, prepare_table, role_of
from pft_ray.data.split import split_hash, validation_threshold


@given(st.floats(0, 1, exclude_max=True))
def test_the_threshold_is_the_exact_floor(fraction):
    threshold = validation_threshold(fraction)
    exact = Fraction(fraction) * 2**64
    assert threshold <= exact < threshold + 1


def test_the_hash_is_sha256_of_length_prefixed_parts():
    raw = b"pft-ray/split/1" + (4).to_bytes(8, "big") + b"salt" + b"ann"
    expected = int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")
    assert split_hash("salt", b"ann") == expected
    assert split_hash("sal", b"tann") != expected


@given(st.binary(max_size=8), st.text(min_size=1, max_size=4), st.floats(0, 0.999))
def test_role_compares_the_hash_with_the_threshold(value, salt, fraction):
    is_validation = split_hash(salt, value) < Fraction(fraction) * 2**64
    role = role_of(value, SplitSpec(salt=salt, validation_fraction=fraction))
    assert (role == "validation") is is_validation


def test_fraction_zero_leaves_everything_in_training():
    split = SplitSpec(validation_fraction=0.0)
    assert {role_of(bytes([n]), split) for n in range(200)} == {"train"}


@pytest.mark.statistical
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_share_of_validation_units_is_binomial(fraction):
    """Fixed ids: the result never changes; a biased hash would be 1e-6 unlikely."""
    split = SplitSpec(salt="share", validation_fraction=fraction)
    num = 20_000
    count = sum(
        role_of(f"unit {n}".encode(), split) == "validation" for n in range(num)
    )
    low, high = binom.ppf([5e-7, 1 - 5e-7], num, fraction)
    assert low <= count <= high
    assert not low <= 1.3 * count <= high


def test_another_salt_gives_another_split():
    ids = [f"unit {n}".encode() for n in range(400)]
    roles = [[role_of(i, SplitSpec(salt=s)) for i in ids] for s in ("1", "2")]
    assert sum(a != b for a, b in zip(*roles, strict=True)) > 50


SENDERS = [f"sender {n}" for n in range(40)]
MAIL = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(SENDERS)),
    min_size=2,
    max_size=25,
)


def blocks(mail, **fields):
    texts, senders = [t for t, _ in mail], [s for _, s in mail]
    table = RawTable("m", {"text": texts, "who": senders}, len(mail), ("text", "who"))
    spec = DataSpec(path=None, num_train=1, text="text", **fields)
    return prepare_table(table, spec, bytes(32))


@given(MAIL, st.data())
def test_no_unit_changes_sides_when_another_leaves(mail, data):
    place = data.draw(st.integers(0, len(mail) - 1))
    for fields in ({}, {"user": "who"}, {"split": SplitSpec(field="who")}):
        whole, rest = (
            {
                (role, digest.tobytes())
                for role in ("train", "validation")
                for digest in getattr(blocks(part, **fields), role).digests
            }
            if part
            else set()
            for part in (mail, mail[:place] + mail[place + 1 :])
        )
        assert rest < whole
        assert len(whole - rest) == 1


@given(MAIL)
def test_no_sender_is_on_both_sides(mail):
    for fields in ({"user": "who"}, {"split": SplitSpec(field="who")}):
        data = blocks(mail, **fields)
        sides = [
            {mail[number - 1][1] for number in block.numbers}
            for block in (data.train, data.validation)
        ]
        assert not sides[0] & sides[1]


@given(MAIL)
def test_equal_texts_without_an_id_are_on_one_side(mail):
    data = blocks(mail)
    assert not set(data.train.contents) & set(data.validation.contents)


def test_the_default_split_column_is_user_then_id_then_content():
    def column(**fields):
        return DataSpec(path=None, num_train=1, text="t", **fields).split_column

    assert column() is None
    assert column(id="i") == "i"
    assert column(id="i", user="u") == "u"
    assert column(user="u", split=SplitSpec(field="f")) == "f"
