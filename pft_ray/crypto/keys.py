"""Keys: fresh ones from the operating system, derived ones by HKDF, keyed digests."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pft_ray.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
TOKEN_BYTES = 16
DIGEST_BYTES = 16


def new_key() -> bytes:
    """Returns 32 fresh bytes from the operating system's secure generator."""
    return secrets.token_bytes(KEY_BYTES)


def new_token() -> bytes:
    """Returns 16 fresh bytes: an identity that is not secret but never repeats."""
    return secrets.token_bytes(TOKEN_BYTES)


def derive_key(key: bytes, *parts: str | int) -> bytes:
    """Derives an independent 32-byte key by HKDF-SHA256 (RFC 5869).

    The parts become the ``info`` field, each prefixed by its length, so no two
    different tuples give the same bytes.

    Args:
        key: Parent key: 32 bytes, or a 16-byte token where nothing is secret.
        parts: Domain and position, for example ``("noise", run, attempt, step)``.

    Returns:
        32 bytes.

    Raises:
        ValueError: The parent key has fewer than 16 bytes.
    """
    if len(key) < TOKEN_BYTES:
        msg = f"a parent key has at least {TOKEN_BYTES} bytes, not {len(key)}"
        raise ValueError(msg)
    info = b"pft-ray/1"
    for part in parts:
        raw = str(part).encode()
        kind = b"i" if isinstance(part, int) else b"s"
        info += kind + len(raw).to_bytes(4, "big") + raw
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)


def keyed_digest(key: bytes, *parts: bytes) -> bytes:
    """Returns the first 16 bytes of HMAC-SHA256 over the length-prefixed parts."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()[:DIGEST_BYTES]


def load_or_create_key(path: Path) -> bytes:
    """Reads the 32-byte key file at ``path``, creating it (mode 0600) when absent.

    A new key gets its name only when it is whole and on the disk, so two processes
    that create it at once end up with the same key.

    Raises:
        LedgerError: The file has another length or is readable by others.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _create_key(path)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise LedgerError(
            f"The key file {path.name} has {len(key)} bytes, not {KEY_BYTES}.",
            "Restore it from a backup; without it overlaps cannot be found.",
        )
    if path.stat().st_mode & 0o077:
        raise LedgerError(
            f"The key file {path.name} can be read by other users.",
            f"Run chmod 600 on {path}.",
        )
    return key


def _create_key(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{new_token().hex()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(new_key())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
