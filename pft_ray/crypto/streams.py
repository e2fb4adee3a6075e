"""AES as a pseudo-random function and as a stream, in single vectorised calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_BYTES = 16


def aes_blocks(key: bytes, blocks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Encrypts each 16-byte block under AES-256 by itself.

    As a pseudo-random permutation of distinct blocks this is a keyed PRF: the
    output of one block depends on that block and the key alone.

    Args:
        key: 32 bytes.
        blocks: uint8 array of shape (n, 16).

    Returns:
        The first 64 bits of each ciphertext block, shape (n,).
    """
    raw = np.ascontiguousarray(blocks, dtype=np.uint8)
    if raw.ndim != 2 or raw.shape[1] != BLOCK_BYTES:
        msg = f"blocks must have shape (n, {BLOCK_BYTES}), not {raw.shape}"
        raise ValueError(msg)
    # ECB is right here: every block is encrypted once, as the input of a PRF.
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    out = encryptor.update(raw.tobytes()) + encryptor.finalize()
    return np.frombuffer(out, dtype="<u8").reshape(-1, 2)[:, 0]


def aes_keystream(key: bytes, num_words: int) -> NDArray[np.uint64]:
    """Returns ``num_words`` 64-bit words of the AES-256-CTR stream of ``key``.

    The counter starts at 0, so a key must be used for one stream only.
    """
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(BLOCK_BYTES)))
    stream = encryptor.encryptor().update(bytes(8 * num_words))
    return np.frombuffer(stream, dtype="<u8")


def aes_keystream_chunks(
    key: bytes, num_words: int, chunk_words: int
) -> Iterator[NDArray[np.uint64]]:
    """Yields the words of :func:`aes_keystream` in pieces that stay in the cache.

    Every piece is a view of one buffer that the next piece overwrites.
    """
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(BLOCK_BYTES)))
    stream = encryptor.encryptor()
    zeros = bytes(8 * chunk_words)
    buffer = bytearray(8 * chunk_words + BLOCK_BYTES)
    words = np.frombuffer(buffer, dtype="<u8", count=chunk_words)
    for start in range(0, num_words, chunk_words):
        count = min(chunk_words, num_words - start)
        stream.update_into(memoryview(zeros)[: 8 * count], buffer)
        yield words[:count]
