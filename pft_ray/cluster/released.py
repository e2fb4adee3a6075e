"""Uses what a run released: predictions on new texts, merged exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pft_ray.cluster.run_folder import RunFolder
from pft_ray.cluster.specs import model_spec
from pft_ray.config import JobSpec, read_job
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.tokenize import Encoded, encode_contents, load_tokenizer
from pft_ray.errors import InputError, ResumeError
from pft_ray.training.batch import TokenBatch
from pft_ray.training.release import load_released

if TYPE_CHECKING:
    from pft_ray.training.models import TrainedModel


def _released_folder(folder: Path) -> Path:
    for name in ("adapter", "model"):
        if (folder / name).is_dir():
            return folder / name
    raise InputError(
        f"The run {folder.name} has released no model.",
        "Run its job again: it resumes from its last checkpoint.",
    )


def load_run(folder: Path) -> tuple[JobSpec, Path, TrainedModel]:
    """Loads the released model of a run folder.

    Returns:
        The job, the folder its paths start from, and the model.

    Raises:
        ResumeError: plan.json is missing or damaged.
        ModelError: The released files or the base model do not load.
    """
    document = RunFolder(folder).read_json("plan.json")
    try:
        job = read_job(document["job"], source="plan.json")
        base_dir = Path(document["base_dir"])
    except (KeyError, TypeError):
        raise ResumeError(
            f"The plan.json of run {folder.name} lacks the job.", "Restore the file."
        ) from None
    model = load_released(_released_folder(folder), model_spec(job, base_dir))
    return job, base_dir, model


def predict_texts(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Classifies texts with a run's released model.

    Returns:
        One object a text: text, label, probability, probabilities by label.

    Raises:
        InputError: The run trained no classifier.
    """
    job, base_dir, model = load_run(folder)
    if job.data.labels is None:
        raise InputError(
            f"The run {folder.name} trained a language model, not a classifier.",
            "Load its adapter with peft to generate text.",
        )
    tokenizer = load_tokenizer(resolve_model_path(job.model.path, base_dir))
    length = job.data.max_length
    results = []
    encoded = encode_contents(tuple(texts), tokenizer, length, "classification")
    for text, tokens in zip(texts, encoded, strict=True):
        if not isinstance(tokens, Encoded):
            raise InputError("A text is empty or cannot be tokenised.", "Give words.")
        ids = np.zeros((1, length), dtype=np.int64)
        ids[0, : len(tokens.ids)] = tokens.ids
        batch = TokenBatch(torch.from_numpy(ids), torch.tensor([len(tokens.ids)]))
        with torch.no_grad():
            row = model.probabilities(batch)[0].tolist()
        best = int(np.argmax(row))
        results.append(
            {
                "text": text,
                "label": job.data.labels[best],
                "probability": row[best],
                "probabilities": dict(zip(job.data.labels, row, strict=True)),
            }
        )
    return results


def export_model(folder: Path, out: Path, *, merge: bool) -> list[str]:
    """Copies a run's released files to ``out``, or merges the adapter into the base.

    Returns:
        Names of the files written.

    Raises:
        InputError: Nothing was released, or the folder cannot be written.
    """
    source = _released_folder(folder)
    if not merge:
        try:
            shutil.copytree(source, out, dirs_exist_ok=True)
        except (OSError, shutil.Error):
            raise InputError(
                f"The model cannot be written to {out}.",
                "Check permissions and free space, or name another folder.",
            ) from None
    else:
        job, base_dir, model = load_run(folder)
        model.save_merged(out)
        tokenizer = load_tokenizer(resolve_model_path(job.model.path, base_dir))
        tokenizer.save_pretrained(out)
        for head in source.glob("head.*"):
            shutil.copy(head, out / head.name)
    return sorted(path.name for path in out.iterdir())
