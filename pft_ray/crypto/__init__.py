"""The only door to the ``cryptography`` package: streams, key derivation, MACs."""

from pft_ray.crypto.keys import (
    KEY_BYTES,
    derive_key,
    keyed_digest,
    load_or_create_key,
    new_key,
    new_token,
)
from pft_ray.crypto.streams import aes_blocks, aes_keystream, aes_keystream_chunks

__all__ = [
    "KEY_BYTES",
    "aes_blocks",
    "aes_keystream",
    "aes_keystream_chunks",
    "derive_key",
    "keyed_digest",
    "load_or_create_key",
    "new_key",
    "new_token",
]
