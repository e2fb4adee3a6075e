"""Models packed as one GGUF file: unpacked once into a folder that training reads.

A GGUF file holds quantised weights and the tokenizer. Reading one takes long, and it
cannot be trained as it is, so it is converted when it is first named: the weights
become bf16 safetensors in transformers' own layout, beside the tokenizer and its chat
template. The folder is kept under ``$PFT_HOME/models``, named by the digest of the
file, with the digests of what was written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from pft_ray.errors import MissingExtraError, ModelError
from pft_ray.ledger.home import pft_home
from pft_ray.telemetry import get_logger

SUFFIX = ".gguf"
RECORD = "conversion.json"

_LOG = get_logger("pft_ray.models")


def converted_folder(file: Path) -> Path:
    """Returns the folder with the model of a GGUF file, made when it is not there.

    Several processes may call this at once: each converts into a folder of its own,
    and the first to finish is used by all.

    Args:
        file: A GGUF file of a model that transformers knows.

    Raises:
        ModelError: The file cannot be read as a model, the kept folder is not what
            was written into it, or it cannot be written.
        MissingExtraError: transformers or gguf is not installed.
    """
    state = file.stat()
    digest = _digest(str(file), state.st_size, state.st_mtime_ns)
    folder = pft_home() / "models" / f"{file.stem}-{digest[:16]}"
    if not folder.is_dir():
        _convert_into(file, digest, folder)
    _check(folder, digest)
    return folder


def _convert_into(file: Path, digest: str, folder: Path) -> None:
    _LOG.warning("unpacking %s into %s, once (takes up to two minutes)", file, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{file.stem}-", dir=folder.parent))
        try:
            _convert(file, work)
            names = sorted(path.name for path in work.iterdir())
            record = {
                "source": file.name,
                "source_sha256": digest,
                "sha256": {name: _sha256(work / name) for name in names},
            }
            text = json.dumps(record, indent=2, sort_keys=True) + "\n"
            (work / RECORD).write_text(text, encoding="utf-8")
            if not folder.is_dir():
                work.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"The model of {file.name!r} cannot be kept in {folder.parent} "
            f"({error.strerror or type(error).__name__}).",
            "Free some space there, or set PFT_HOME to a folder that can be written.",
        ) from error


def _convert(file: Path, folder: Path) -> None:
    try:
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"Unpacking {file.name!r} needs {error.name}, which is not installed.",
            "Run pip install 'pft-ray[train]' and pip install --no-deps gguf.",
        ) from None
    options: dict[str, Any] = {
        "gguf_file": file.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
        _LOG.warning("  tokenizer read; reading the weights")
        packed = AutoModelForCausalLM.from_pretrained(
            str(file.parent), dtype="float32", **options
        )
        # A model read from GGUF refuses to be saved: its weights go into a plain one.
        config = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = type(packed)(config)
        plain.load_state_dict(packed.state_dict())
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The file {file.name!r} does not load as a model: {reason}",
            "Give a GGUF file of a model family that transformers can unpack.",
        ) from error
    plain.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(folder: Path, digest: str) -> None:
    """Refuses a folder that does not hold what the conversion wrote."""
    record = folder / RECORD
    problem = None
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["source_sha256"] != digest:
            problem = "it was made from another file"
        for name, expected in content["sha256"].items():
            state = (folder / name).stat()
            found = _digest(str(folder / name), state.st_size, state.st_mtime_ns)
            if found != expected:
                problem = f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = "files are missing"
    if problem is not None:
        raise ModelError(
            f"The unpacked model in {folder} is damaged: {problem}.",
            "Remove that folder; the next run unpacks the model again.",
        )


@lru_cache(maxsize=64)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """Returns the SHA-256 of a file, read once a process while it does not change."""
    del size, mtime_ns
    return _sha256(Path(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
