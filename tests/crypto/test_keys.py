"""Key derivation against RFC 5869, keyed digests, and the key file."""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.crypto import (
    KEY_BYTES,
    derive_key,
    keyed_digest,
    load_or_create_key,
    new_key,
    new_token,
)
from pft_ray.errors import LedgerError


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, written from its text with the standard library."""
    pseudo_random = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    out = block = b""
    for counter in range(1, -(-length // 32) + 1):
        message = block + info + bytes([counter])
        block = hmac.new(pseudo_random, message, hashlib.sha256).digest()
        out += block
    return out[:length]


# RFC 5869, appendix A: (input key, salt, info, length, output key).
RFC_5869 = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        42,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        "34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        82,
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        42,
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        "9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("key", "salt", "info", "length", "expected"), RFC_5869)
def test_the_reference_is_rfc_5869(key, salt, info, length, expected):
    raw = (bytes.fromhex(text) for text in (key, salt, info))
    assert hkdf(*raw, length).hex() == expected


def test_derived_keys_are_hkdf_of_the_prefixed_parts():
    key = bytes(range(32))
    info = (
        b"pft-ray/1"
        + (b"s" + (5).to_bytes(4, "big") + b"noise")
        + (b"s" + (3).to_bytes(4, "big") + "rün"[:2].encode())
        + (b"i" + (2).to_bytes(4, "big") + b"12")
    )
    assert derive_key(key, "noise", "rü", 12) == hkdf(key, b"", info, 32)


PARTS = st.lists(st.one_of(st.text(max_size=6), st.integers(-5, 2**40)), max_size=4)


@settings(deadline=None)
@given(PARTS, PARTS)
def test_different_parts_give_different_keys(one, two):
    key = bytes(32)
    is_same = [(type(a), a) for a in one] == [(type(a), a) for a in two]
    assert (derive_key(key, *one) == derive_key(key, *two)) == is_same


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        ((1,), ("1",)),
        ((1, 2), (12,)),
        (("noise", "run", 1, 2, 3), ("sample", "run", 1, 2, 3)),
        (("noise", "run", 1, 23), ("noise", "run", 12, 3)),
        (("noise", "run1", 1), ("noise", "run", 11)),
    ],
)
def test_boundaries_between_parts_count(one, two):
    key = bytes(range(32))
    assert derive_key(key, *one) != derive_key(key, *two)


def test_every_position_of_a_run_has_its_own_key():
    key = new_key()
    keys = {
        derive_key(key, domain, "run", attempt, step, share)
        for domain in ("sample", "noise", "eval")
        for attempt in range(4)
        for step in range(12)
        for share in range(8)
    }
    assert len(keys) == 3 * 4 * 12 * 8


def test_derived_keys_depend_on_the_parent_and_are_repeatable():
    one, two = new_key(), new_key()
    assert derive_key(one, "a") == derive_key(one, "a")
    assert derive_key(one, "a") != derive_key(two, "a")
    assert len(derive_key(one, "a")) == KEY_BYTES


@pytest.mark.parametrize("key", [b"", b"short", bytes(15)])
def test_refuses_a_parent_that_is_no_key(key):
    with pytest.raises(ValueError, match="parent key"):
        derive_key(key, "a")


def test_fresh_keys_and_tokens_do_not_repeat():
    keys, tokens = {new_key() for _ in range(200)}, {new_token() for _ in range(200)}
    assert len(keys) == len(tokens) == 200
    assert {len(key) for key in keys} == {32}
    assert {len(token) for token in tokens} == {16}


def test_a_keyed_digest_is_hmac_of_prefixed_parts():
    # RFC 4231, test case 2, checks the reference.
    reference = hmac.new(b"Jefe", b"what do ya want for nothing?", "sha256").hexdigest()
    assert reference.startswith("5bdcc146bf60754e6a042426089575c7")
    key = bytes(range(32))
    message = (2).to_bytes(8, "big") + b"ab" + (1).to_bytes(8, "big") + b"c"
    expected = hmac.new(key, message, "sha256").digest()[:16]
    assert keyed_digest(key, b"ab", b"c") == expected
    assert keyed_digest(key, b"a", b"bc") != expected
    assert keyed_digest(bytes(32), b"ab", b"c") != expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5)))
def test_different_messages_have_different_digests(one, two):
    key = bytes(32)
    assert (keyed_digest(key, *one) == keyed_digest(key, *two)) == (one == two)


# -- the key file -------------------------------------------------------------------


def test_a_key_file_is_made_once_and_for_its_owner(tmp_path):
    path = tmp_path / "home" / "keys" / "a.key"
    before = os.umask(0)
    try:
        key = load_or_create_key(path)
    finally:
        os.umask(before)
    assert len(key) == KEY_BYTES
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_or_create_key(path) == key
    assert [p.name for p in path.parent.iterdir()] == ["a.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "a.key"
    key = load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(LedgerError, match="other users") as caught:
        load_or_create_key(path)
    assert key.hex() not in str(caught.value)
    path.chmod(0o600)
    assert load_or_create_key(path) == key


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_damaged_key_is_refused_and_kept(tmp_path, length):
    path = tmp_path / "a.key"
    path.write_bytes(b"k" * length)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match=f"{length} bytes"):
        load_or_create_key(path)
    assert path.read_bytes() == b"k" * length


def test_a_crash_while_making_a_key_leaves_none(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        load_or_create_key(tmp_path / "a.key")
    assert list(tmp_path.iterdir()) == []


def _make(path: str, barrier, results) -> None:
    barrier.wait()
    results.put(load_or_create_key(Path(path)))


def test_processes_that_make_a_key_at_once_share_it(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    path = str(tmp_path / "keys" / "a.key")
    makers = [
        context.Process(target=_make, args=(path, barrier, results)) for _ in range(6)
    ]
    for maker in makers:
        maker.start()
    keys = {results.get(timeout=60) for _ in makers}
    for maker in makers:
        maker.join(timeout=60)
    assert len(keys) == 1
