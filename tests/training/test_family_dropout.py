"""Dropout in the families that have it: exact for the masks that records have."""

from __future__ import annotations

import pytest
import torch

from pft_ray.training.clipping import PerRecordClipper
from pft_ray.training.dropout import RecordDropout
from tests.training.families import build, losses, records, used
from tests.training.tiny import naive_sum, relative_error

RATE = 0.3
RATES = {
    "Phi": ("resid_pdrop", "embd_pdrop", "attention_dropout"),
    "Phi3": ("resid_pdrop", "embd_pdrop", "attention_dropout"),
    "StableLm": ("hidden_dropout", "attention_dropout"),
    "GPT2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "GPTJ": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "GPTNeoX": ("hidden_dropout", "attention_dropout"),
    "GPTNeo": ("resid_dropout", "embed_dropout", "attention_dropout"),
    "OPT": ("dropout", "attention_dropout"),
    "Bloom": ("hidden_dropout", "attention_dropout"),
    "Falcon": ("hidden_dropout", "attention_dropout"),
    "Llama": ("attention_dropout",),
    "Qwen2": ("attention_dropout",),
    "Bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "Roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "XLMRoberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "Electra": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "Albert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "DistilBert": ("dropout", "attention_dropout"),
    "ModernBert": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
}


@pytest.mark.parametrize("name", RATES)
def test_a_family_with_dropout_is_exact_under_its_records_masks(name):
    model = build(name, attention="eager", **dict.fromkeys(RATES[name], RATE)).train()
    ids, mask = records()
    seeds = torch.tensor([5, -7, 11])
    with torch.random.fork_rng(devices=[]), RecordDropout() as masks:

        def losses_of(rows):
            masks.start(seeds[rows])
            return losses(model, name, ids[rows], mask[rows])

        named = used(model, losses_of(slice(None)).sum())
        rows = []
        for i in range(3):
            loss = losses_of(slice(i, i + 1))[0]
            grads = torch.autograd.grad(loss, [p for _, p in named])
            rows.append(torch.cat([grad.flatten() for grad in grads]).double())
        masks.check_others()
        naive = torch.stack(rows)
        clip_norm = float(naive.norm(dim=1).median())
        found, _ = PerRecordClipper(model, named).clipped_sum(
            lambda: losses_of(slice(None)), 3, clip_norm
        )
    assert relative_error(found, naive_sum(naive, clip_norm)) < 5e-9
