"""Looks through files for what must not be in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

RELEASE_SET = ("report.json", "report.html", "adapter", "model")

_HASHES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3_256", "sha3_512", "blake2b", "blake2s"),
)
_SHORTEST_BYTES = 8  # a hash may be cut short; fewer bytes would match by chance


def release_files(folder: Path) -> list[Path]:
    """Returns the files of a run that may leave the house."""
    files: list[Path] = []
    for name in RELEASE_SET:
        path = folder / name
        files += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
        files += [path] if path.is_file() else []
    return sorted(files)


def hashes_of(values: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, digest) of every usual unkeyed hash of each value."""
    for value in values:
        for name in _HASHES:
            yield name, hashlib.new(name, value).digest()
        yield "crc32", zlib.crc32(value).to_bytes(4, "big") * 2


class Haystack:
    """All short pieces of a file, so that many hashes can be looked up in it."""

    def __init__(self, content: bytes) -> None:
        lowered = content.lower()
        self._raw = _windows(content, _SHORTEST_BYTES)
        self._hex = _windows(lowered, 2 * _SHORTEST_BYTES)
        self._base64 = _windows(content, 10)
        self._numbers = set(re.findall(rb"\d{12,20}", content))

    def holds(self, digest: bytes) -> bool:
        """Tells whether the file holds the digest, whole or cut, in any usual form."""
        start = digest[:_SHORTEST_BYTES]
        return (
            start in self._raw
            or start[::-1] in self._raw
            or start.hex().encode() in self._hex
            or base64.b64encode(digest)[:10] in self._base64
            or base64.urlsafe_b64encode(digest)[:10] in self._base64
            or str(int.from_bytes(start, "big")).encode() in self._numbers
            or str(int.from_bytes(start, "little")).encode() in self._numbers
        )


def _windows(content: bytes, length: int) -> set[bytes]:
    last = len(content) - length + 1
    return {content[start : start + length] for start in range(max(0, last))}


def find_hashes(content: bytes, values: Iterable[bytes]) -> list[str]:
    """Returns the names of hashes of ``values`` that ``content`` holds in any form."""
    haystack = Haystack(content)
    return [name for name, digest in hashes_of(values) if haystack.holds(digest)]


def find_words(content: bytes, words: Iterable[str]) -> list[str]:
    """Returns which words are in the content, whatever their case."""
    lowered = content.lower()
    return [word for word in words if word.lower().encode() in lowered]


def find_numbers(text: str, numbers: Iterable[int]) -> list[int]:
    """Returns which whole numbers stand in the text by themselves."""
    found = set(re.findall(r"(?<![\w.#,-])(\d+)(?![\w.%]|,\d)", text))
    return [number for number in numbers if str(number) in found]


def find_paths(text: str) -> list[str]:
    """Returns absolute paths of a machine."""
    pattern = (
        r"(?<![\w.:/<])/(?:home|root|tmp|work|usr|var|Users|mnt|data|opt)/[\w./-]+"
    )
    return re.findall(pattern, text)


def find_times(text: str) -> list[str]:
    """Returns dates, times of day and seconds since 1970 of this century."""
    pattern = (
        r"20\d\d-\d\d-\d\d|20\d{6}-\d{6}|\b\d\d:\d\d:\d\d|\b1[789]\d{8}(?:\.\d+)?\b"
    )
    return re.findall(pattern, text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every leaf of JSON; list places are not told apart."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def shape_of(path: Path) -> Any:
    """Returns the structure of a released file without its numbers."""
    if path.suffix == ".json":
        found = leaves(json.loads(path.read_bytes()))
        return [(where, type(value).__name__) for where, value in found]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return {
                name: (
                    tensors.get_slice(name).get_dtype(),
                    tensors.get_slice(name).get_shape(),
                )
                for name in sorted(tensors.keys())
            }
    # Drawings are made of released values: how many ticks an axis has follows them.
    text = re.sub(r"<svg.*?</svg>", "<svg>", path.read_text(), flags=re.DOTALL)
    return re.findall(r"</?[a-z0-9]+", text)
