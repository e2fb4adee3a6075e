"""A tiny chat job on disk: random Llama, word tokenizer with a template, JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_job import WORDS, job_dict

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
MARKS = ("<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>", "<tool>")
PHASE = {
    "name": "lora",
    "steps": 8,
    "trainable": "adapter",
    "clip_norm": 0.5,
    "learning_rate": 0.05,
}
CHANGES: dict[str, Any] = {
    "name": "tiny-chat",
    "data__path": "chats.jsonl",
    "data__registration": "tiny-chats",
    "data__text": None,
    "data__messages": "messages",
    "data__label": None,
    "data__labels": None,
    "data__max_length": 24,
    "model__path": "llama",
    "model__task": "causal_lm",
    "model__pooling": None,
    "model__lora__targets": ["q_proj", "v_proj"],
    "training__phases": [PHASE],
}


def make_llama(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Saves a random Llama of two layers and its tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate((*MARKS, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=template,
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_chats(num: int = 400) -> list[dict[str, Any]]:
    """Chats whose answers repeat the first word of the question in turn."""
    chats = []
    for i in range(num):
        words = [WORDS[(7 * i + 11 * j) % 60] for j in range(4)]
        messages = [
            {"role": "system", "content": "word0"},
            {"role": "user", "content": " ".join(words)},
            {"role": "assistant", "content": f"{words[0]} {words[0]} word1"},
        ]
        if i % 3 == 0:
            messages[2:2] = [{"role": "tool", "content": words[1]}]
        chats.append({"id": f"r{i}", "messages": messages, "sender": f"s{i % 97}"})
    return chats


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_chat_job(folder: Path, **changes: Any) -> Path:
    """Writes model, chats and job file into ``folder``; returns the job file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "llama").exists():
        make_llama(folder / "llama")
    if not (folder / "chats.jsonl").exists():
        write_jsonl(folder / "chats.jsonl", make_chats())
    path = folder / "chat.yaml"
    job = job_dict(**(CHANGES | changes))
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path
