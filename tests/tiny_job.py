"""A whole tiny job on disk: random BERT, word tokenizer, small CSV, job file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

WORDS = [f"word{i}" for i in range(60)]


def make_model(folder: Path) -> Path:
    """Saves a random BERT of two layers with a word tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_rows(num_rows: int = 400, shift: int = 0) -> list[dict[str, Any]]:
    """Rows whose label can be told from their words; texts are all different."""
    rows = []
    for i in range(shift, shift + num_rows):
        label = i % 2
        base = 0 if label == 0 else 30
        words = [WORDS[base + (i * 7 + j * (1 + i % 5)) % 30] for j in range(6)]
        words.append(WORDS[(i * 13) % 60])
        rows.append(
            {
                "id": f"r{i}",
                "text": " ".join(words) + f" n{i}",
                "label": "yes" if label else "no",
                "sender": f"s{i % 97}",
            }
        )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def job_dict(**changes: Any) -> dict[str, Any]:
    """Returns the tiny job as plain data; ``changes`` replace dotted keys.

    A double underscore stands for a dot: ``privacy__epsilon=8``. None removes a key.
    """
    job: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "data": {
            "path": "data.csv",
            "registration": "tiny-data",
            "public": False,
            "text": "text",
            "label": "label",
            "labels": ["no", "yes"],
            "id": "id",
            "split": {"salt": "1", "validation_fraction": 0.25},
            "num_train": 300,
            "num_validation": 100,
            "max_length": 12,
        },
        "model": {
            "path": "model",
            "task": "classification",
            "pooling": "mean",
            "lora": {"rank": 2, "alpha": 4, "targets": ["query", "value"]},
        },
        "privacy": {"unit": "record", "epsilon": 8, "delta": 1e-5},
        "training": {
            "batch_size": 60,
            "phases": [
                {
                    "name": "head",
                    "steps": 8,
                    "trainable": "head",
                    "clip_norm": 1.0,
                    "learning_rate": 0.05,
                },
                {
                    "name": "lora",
                    "steps": 8,
                    "trainable": "adapter+head",
                    "clip_norm": 0.5,
                    "learning_rate": 0.01,
                },
            ],
            "checkpoint_interval": 4,
            "grant_size": 2,
            "max_micro_batch": 32,
        },
        "evaluation": {"spare_looks": 1},
        "cluster": {"workers": 1, "cpus_per_worker": 0.5},
        "output": "runs",
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = job
        for part in parents:
            target = target.setdefault(part, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return job


def write_job(folder: Path, *, rows: int = 400, **changes: Any) -> Path:
    """Writes model, data and job file into ``folder``; returns the job file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        make_model(folder / "model")
    if not (folder / "data.csv").exists():
        write_csv(folder / "data.csv", make_rows(rows))
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job_dict(**changes), sort_keys=False))
    return path
