"""AES against published vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.crypto import aes_blocks, aes_keystream, aes_keystream_chunks

# NIST SP 800-38A, appendix F.1.5: ECB-AES256.Encrypt.
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
PLAIN = [
    "6bc1bee22e409f96e93d7e117393172a",
    "ae2d8a571e03ac9c9eb76fac45af8e51",
    "30c81c46a35ce411e5fbc1191a0a52ef",
    "f69f2445df4f9b17ad2b417be66c3710",
]
CIPHER = [
    "f3eed1bdb5d2a03c064b5a7e3db181f8",
    "591ccb10d410ed26dc5ba74a31362870",
    "b6ed21b99ca6f4f9f153e7b1beafed1d",
    "23304b7a39f9f3ff067d8d8f9e24ecc7",
]
# NIST SP 800-38A, appendix F.5.5: CTR-AES256.Encrypt under the same key. Key stream
# blocks are the encrypted counters f0f1...feff, f0f1...ff00, ...
COUNTER = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
CTR_OUTPUT = [
    "0bdf7df1591716335e9a8b15c860c502",
    "5a6e699d536119065433863c8f657b94",
    "1bc12c9c01610d5d0d8bd6a3378eca62",
    "2956e1c8693536b1bee99c73a31576b6",
]


def as_blocks(values: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 16)


def words(text: str) -> list[int]:
    raw = bytes.fromhex(text)
    return [int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")]


def test_blocks_match_the_ecb_vectors():
    out = aes_blocks(KEY, as_blocks([bytes.fromhex(text) for text in PLAIN]))
    assert out.dtype == np.uint64
    assert out.tolist() == [words(text)[0] for text in CIPHER]


def test_blocks_match_the_counter_vectors():
    counters = [(COUNTER + i).to_bytes(16, "big") for i in range(4)]
    out = aes_blocks(KEY, as_blocks(counters)).tolist()
    assert out == [words(text)[0] for text in CTR_OUTPUT]


def test_the_keystream_encrypts_counters_from_zero():
    """Each 16 bytes are the encrypted counter: first halves are the block PRF."""
    stream = aes_keystream(KEY, 600)
    counters = as_blocks([i.to_bytes(16, "big") for i in range(300)])
    assert stream.dtype == np.uint64
    assert stream[0::2].tolist() == aes_blocks(KEY, counters).tolist()


def test_the_keystream_of_the_zero_key_is_the_published_one():
    # FIPS 197 AES-256 of the zero block under the zero key (NIST AESAVS, VarTxt).
    assert aes_keystream(bytes(32), 2).tolist() == words(
        "dc95c078a2408989ad48a21492842087"
    )


@settings(deadline=None)
@given(st.integers(0, 70))
def test_a_shorter_stream_is_a_prefix(length):
    whole = aes_keystream(KEY, 70)
    assert aes_keystream(KEY, length).tolist() == whole[:length].tolist()


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_a_block_depends_on_itself_and_the_key_alone(order):
    blocks = as_blocks([bytes([i]) * 16 for i in range(8)])
    alone = [int(aes_blocks(KEY, blocks[i : i + 1])[0]) for i in range(8)]
    assert aes_blocks(KEY, blocks[list(order)]).tolist() == [alone[i] for i in order]
    assert aes_blocks(bytes(32), blocks).tolist() != alone


def test_non_contiguous_blocks_are_read_in_order():
    wide = np.arange(4 * 32, dtype=np.uint8).reshape(4, 32)
    expected = aes_blocks(KEY, np.ascontiguousarray(wide[:, 3:19]))
    assert aes_blocks(KEY, wide[:, 3:19]).tolist() == expected.tolist()


def test_nothing_gives_nothing():
    assert aes_blocks(KEY, np.zeros((0, 16), np.uint8)).shape == (0,)
    assert aes_keystream(KEY, 0).shape == (0,)


@pytest.mark.parametrize("shape", [(16,), (2, 15), (2, 17), (1, 2, 16)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        aes_blocks(KEY, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_refuses_keys_of_other_lengths(length):
    with pytest.raises(ValueError, match="key"):
        aes_keystream(bytes(length), 1)
    with pytest.raises(ValueError, match="key"):
        aes_blocks(bytes(length), np.zeros((1, 16), np.uint8))


def test_streams_look_uniform():
    """Bits are balanced: 5 standard deviations, false alarm below 1e-6."""
    for key in (KEY, bytes(32)):
        bits = np.unpackbits(aes_keystream(key, 1 << 14).view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)


@pytest.mark.parametrize("num_words", [0, 1, 6, 7, 20])
def test_chunks_are_the_stream(num_words):
    """Chunks of six words are whole cipher blocks, the last may be shorter."""
    key = bytes(range(32))
    parts = [part.copy() for part in aes_keystream_chunks(key, num_words, 6)]
    joined = np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
    assert (joined == aes_keystream(key, num_words)).all()
