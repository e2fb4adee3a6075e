"""Tiny random models, made-up records, and the naive reference for the tests."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from pft_ray.data.tokens import TokenTable
from pft_ray.training.batch import batch_of
from pft_ray.training.models import LoraSpec, ModelSpec, load_model

VOCAB = 40
LENGTH = 7
LABELS = 3


def _bert():
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    return BertModel(config)


def _gpt2(tied):
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def _llama(tied):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


KINDS = {
    "bert": _bert,
    "gpt2": lambda: _gpt2(tied=False),
    "gpt2-tied": lambda: _gpt2(tied=True),
    "llama": lambda: _llama(tied=False),
    "llama-tied": lambda: _llama(tied=True),
}


def write_tiny(kind, folder):
    """Saves a tiny model whose weights are large enough to matter everywhere."""
    torch.manual_seed(5)
    model = KINDS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


LORA_TARGETS = {
    "bert": ("query", "value"),
    "gpt2": ("c_attn", "c_fc"),
    "llama": ("q_proj", "v_proj", "down_proj"),
}


def spec_of(folder, kind, *, lora=False, layers=None, task=None, pooling="mean"):
    task = task or ("classification" if kind == "bert" else "causal_lm")
    targets = LORA_TARGETS[kind.removesuffix("-tied")]
    return ModelSpec(
        path=str(folder),
        task=task,
        num_labels=LABELS if task == "classification" else 0,
        pooling=pooling,
        lora=LoraSpec(2, 4.0, targets, layers) if lora else None,
        init_seed=3,
    )


def loaded(spec, dtype=torch.float64, *, stir=True):
    """Loads a model in ``dtype``; ``stir`` moves adapters away from zero."""
    model = load_model(spec)
    model.module.to(dtype)
    if stir:
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if ".lora_" in name or name.startswith("head."):
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.3 * noise.to(dtype))
    return model


def random_table(num, *, seed=0, length=LENGTH, lengths=None):
    rng = np.random.default_rng(seed)
    if lengths is None:
        lengths = rng.integers(1, length + 1, num)
    ids = rng.integers(1, VOCAB, (num, length))
    ids[np.arange(length)[None, :] >= np.asarray(lengths)[:, None]] = 0
    return TokenTable(
        input_ids=ids.astype(np.int32),
        lengths=np.asarray(lengths, dtype=np.int32),
        digests=rng.integers(0, 256, (num, 16), dtype=np.uint8),
        targets=rng.integers(0, LABELS, num),
        loss_mask=rng.integers(0, 2, (num, length)).astype(np.uint8),
    )


def naive_gradients(model, named, table):
    """Returns per-record gradients by plain autograd, one record at a time."""
    rows = []
    for row in range(len(table)):
        loss = model.losses(batch_of(table, np.array([row])))[0]
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten().double()
                    for g, (_, p) in zip(grads, named, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def naive_sum(gradients, clip_norm):
    """Returns sum_i min(1, C/|g_i|) g_i."""
    norms = gradients.norm(dim=1)
    factors = (clip_norm / norms).clamp(max=1)
    return (factors[:, None] * gradients).sum(0)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())
