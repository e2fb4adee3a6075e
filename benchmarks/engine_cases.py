"""The models of the engine benchmark, their shapes and targets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from pft_ray.accounting.plan import Clipping


@dataclass(frozen=True)
class Case:
    """One model, batch shape and target.

    Attributes:
        name: Short name.
        family: ``llama``, ``gpt2`` or ``bert``.
        hidden, layers, batch, tokens, vocabulary: H, L, B, T, V.
        lora: Rank of the adapters; 0 trains everything.
        checkpointing: Whether activations are recomputed.
        clipping: How our step bounds a record, ``flat`` or ``per_layer``.
        time, memory: Targets, as ratios to the plain step.
        peers: Whether other engines are measured, too.
    """

    name: str
    family: str
    hidden: int
    layers: int
    batch: int
    tokens: int
    vocabulary: int
    lora: int = 0
    checkpointing: bool = False
    time: float | None = None
    memory: float | None = None
    peers: bool = False
    clipping: Clipping = "flat"

    @property
    def packed(self) -> str:
        """The case as an argument of a process."""
        return json.dumps(asdict(self))

    @property
    def shape(self) -> str:
        """The shape in words."""
        text = (
            f"H {self.hidden}, L {self.layers}, B {self.batch}, T {self.tokens}, "
            f"V {self.vocabulary}"
        )
        return text + (f", LoRA r {self.lora}" if self.lora else ", full")

    def shrunk(self) -> Case:
        """A toy of the same kind."""
        return replace(self, hidden=32, layers=2, batch=4, tokens=16, vocabulary=64)


CASES = (
    Case("llama-lora", "llama", 256, 4, 16, 128, 4096, 8, False, 1.03, 1.10, True),
    Case("gpt2-lora", "gpt2", 384, 4, 16, 64, 4096, 8, False, 1.05, 1.10, True),
    Case("bert-lora", "bert", 384, 6, 64, 64, 30522, 8, False, 1.08, 1.15, True),
    Case("llama-full", "llama", 256, 4, 16, 128, 4096, 0, False, 1.15, 1.25, True),
    Case("gpt2-full-tied", "gpt2", 384, 4, 16, 64, 4096, 0, False, 1.20, 1.25, True),
    Case("llama-full-long", "llama", 256, 4, 8, 512, 4096, 0, True, 1.60, 1.15, True),
    Case(
        *("llama-full-long-layers", "llama", 256, 4, 8, 512, 4096, 0, True),
        *(1.25, 1.15, False, "per_layer"),
    ),
)

_BASE = CASES[3]
GROWTH = (
    *(
        replace(_BASE, name=f"tokens-{t}", tokens=t, batch=8, time=None, memory=None)
        for t in (64, 256, 1024)
    ),
    *(
        replace(_BASE, name=f"batch-{b}", batch=b, time=None, memory=None)
        for b in (4, 64)
    ),
    *(
        replace(
            _BASE, name=f"vocabulary-{v}", vocabulary=v, batch=4, time=None, memory=None
        )
        for v in (1024, 32768, 131072)
    ),
)
GROWTH = tuple(replace(case, peers=False) for case in GROWTH)


def ways_of(case: Case) -> tuple[str, ...]:
    """Returns the private ways that are measured."""
    if not case.peers:
        return ("own",)
    held = () if case.lora else ("own-held",)
    return ("own", *held, "hooks", "ghost")


def build(case: Case) -> nn.Module:
    """Returns the model, with the parameters to train set so."""
    import peft
    import torch

    torch.manual_seed(0)
    model = _base(case)
    if case.lora:
        targets = {
            "llama": [
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ],
            "gpt2": ["c_attn", "c_proj", "c_fc"],
            "bert": ["query", "value"],
        }[case.family]
        config = peft.LoraConfig(
            r=case.lora,
            lora_alpha=2 * case.lora,
            target_modules=targets,
            fan_in_fan_out=case.family == "gpt2",
            modules_to_save=["classifier"] if case.family == "bert" else None,
        )
        model = peft.get_peft_model(model, config)
    model.eval()
    if case.checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _base(case: Case) -> Any:
    import transformers as hf

    h, v, t = case.hidden, case.vocabulary, case.tokens
    heads = max(2, h // 64) if case.family != "bert" else max(2, h // 32)
    if case.family == "llama":
        inner = int(8 * h / 3 + 15) // 16 * 16
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=v,
                hidden_size=h,
                intermediate_size=inner,
                num_hidden_layers=case.layers,
                num_attention_heads=heads,
                max_position_embeddings=t,
                tie_word_embeddings=False,
                use_cache=False,
            )
        )
    if case.family == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=v,
                n_positions=t,
                n_embd=h,
                n_layer=case.layers,
                n_head=heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
    return hf.BertForSequenceClassification(
        hf.BertConfig(
            vocab_size=v,
            hidden_size=h,
            num_hidden_layers=case.layers,
            num_attention_heads=heads,
            intermediate_size=4 * h,
            max_position_embeddings=t,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
