"""Tiny random models of the text families that people fine-tune."""

from __future__ import annotations

import torch
import transformers
from torch.nn import functional

VOCAB = 40
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
_GPT = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
_GROUPED = {"num_key_value_heads": 1}
_SHORT = {"vocab_size": VOCAB, "hidden_size": 16, "num_attention_heads": 2}

DECODERS = {
    "Llama": _COMMON | _GROUPED,
    "Mistral": _COMMON | _GROUPED,
    "Qwen2": _COMMON | _GROUPED,
    "Qwen3": _COMMON | _GROUPED | {"head_dim": 8},
    "Gemma": _COMMON | _GROUPED | {"head_dim": 8},
    "Gemma2": _COMMON | _GROUPED | {"head_dim": 8},
    "Gemma3Text": _COMMON | _GROUPED | {"head_dim": 8},
    "Phi": _COMMON,
    "Phi3": _COMMON | _GROUPED,
    "Olmo": _COMMON | _GROUPED,
    "Olmo2": _COMMON | _GROUPED,
    "SmolLM3": _COMMON | _GROUPED,
    "StableLm": _COMMON | _GROUPED,
    "Cohere": _COMMON | _GROUPED,
    "GPT2": _GPT,
    "GPTJ": _GPT | {"rotary_dim": 4},
    "GPTNeoX": _COMMON,
    "GPTNeo": {
        "vocab_size": VOCAB,
        "max_position_embeddings": 32,
        "hidden_size": 16,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 2,
        "intermediate_size": 24,
    },
    "OPT": _SHORT
    | {
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    },
    "Bloom": {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Falcon": _SHORT | {"num_hidden_layers": 2},
}
ENCODERS = {
    "Bert": _COMMON,
    "Roberta": _COMMON,
    "XLMRoberta": _COMMON,
    "Electra": _COMMON | {"embedding_size": 16},
    "Albert": _COMMON | {"embedding_size": 8},
    "DistilBert": {
        "vocab_size": VOCAB,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 32,
    },
    "ModernBert": _COMMON | {"cls_token_id": 1, "sep_token_id": 2},
}
# Tables of relative positions, experts, convolutions: one by one.
ONE_BY_ONE = {
    "Deberta": _COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2": _COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "MPNet": _COMMON,
    "Mixtral": _COMMON | _GROUPED | {"num_local_experts": 4},
    "Mamba": {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2},
    "SqueezeBert": _COMMON | {"embedding_size": 16},
}
EAGER_ONLY = {
    "Gemma2",
    "GPTNeo",
    "GPTJ",
    "Bloom",
    "Deberta",
    "DebertaV2",
    "MPNet",
    "Mamba",
    "SqueezeBert",
}
SETTINGS = DECODERS | ENCODERS | ONE_BY_ONE


def is_decoder(name):
    return name in DECODERS or name in ("Mixtral", "Mamba")


def build(name, *, attention="sdpa", dtype=torch.float64, **changes):
    """Returns a model in ``dtype`` whose weights matter everywhere."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **(_TOKENS | SETTINGS[name] | changes)
    )
    config._attn_implementation = "eager" if name in EAGER_ONLY else attention
    if is_decoder(name):
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = transformers.AutoModel.from_config(config)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def records(num=3, length=7):
    """Returns ids and mask; the second record is padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (num, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    ids[1, length // 2 :] = 0
    return ids, mask


def losses(model, name, ids, mask, *, by_position=False):
    """Returns (B,) losses: of the next tokens, or a function of hidden states."""
    named = {"attention_mask": mask}
    if is_decoder(name):
        named["use_cache"] = False
    out = model(ids, **named) if by_position else model(input_ids=ids, **named)
    if is_decoder(name):
        logits, targets = out.logits[:, :-1], ids[:, 1:]
        nll = functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none"
        )
        return (nll * mask[:, 1:]).sum(1)
    hidden = out.last_hidden_state
    slope = torch.linspace(-1, 1, ids.shape[1], dtype=hidden.dtype)
    return ((hidden**3 + hidden) * slope[:, None] * mask[:, :, None]).sum((1, 2))


def used(model, loss):
    """Freezes what the loss does not depend on; returns the rest, in order."""
    named = list(model.named_parameters())
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for (_, parameter), grad in zip(named, grads, strict=True):
        parameter.requires_grad_(grad is not None)
    return [(n, p) for n, p in named if p.requires_grad]
