"""Chats through a real Ray: an adapter is learnt; what fails there costs nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import ModelError
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import keys_dir
from tests.tiny_chat import MARKS, write_chat_job

OPTIONS = {
    "cluster__workers": 2,
    "cluster__cpus_per_worker": 0.5,
    "privacy__epsilon": 100,
    "model__lora__dropout": 0.1,
    "training__autocast": "bf16",
}


def run_status(trainer):
    with Ledger.open(trainer.ledger_url, keys_dir=keys_dir(), create=False) as ledger:
        (status,) = ledger.runs()
        return status


def test_a_chat_job_releases_an_adapter_and_a_look_at_the_loss(fresh_home, tmp_path):
    """Two workers, dropout on the adapters' inputs, forward passes in bf16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = write_chat_job(tmp_path / "job", **OPTIONS)
    create_budget(job)
    trainer = PrivateTrainer(job)
    result = trainer.fit()
    assert result.status == "completed"
    status = run_status(trainer)
    assert status.num_steps_charged == trainer.built.plan.num_steps == 8

    report = result.report
    assert report["unit"] == "record"
    assert report["epsilon"] <= 100
    (look,) = report["utility_all"]
    assert look["step"] == 8
    assert report["utility"]["metric"] == "perplexity"
    low, high = report["utility"]["interval"]
    assert 1 < low <= report["utility"]["private"] <= high < math.exp(10)

    config = json.loads((result.folder / "adapter/adapter_config.json").read_text())
    assert (config["task_type"], config["lora_dropout"]) == ("CAUSAL_LM", 0.1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "job" / "llama")
    words = torch.tensor([[MARKS.index("<user>"), 9, 17, MARKS.index("<end>")]])
    with torch.no_grad():
        before = base(words).logits
        learnt = PeftModel.from_pretrained(base, result.folder / "adapter").eval()
        after = learnt(words).logits
    factors = [p for n, p in learnt.named_parameters() if ".lora_B." in n]
    assert len(factors) == 4
    assert all(bool(factor.any()) for factor in factors), "every factor has moved"
    assert float((after - before).abs().max()) > 1e-3
    operator = json.loads((result.folder / "operator.json").read_text())
    assert operator["one_unit_at_a_time"] == {}


def test_a_model_that_only_running_shows_to_be_unfit_costs_nothing(
    fresh_home, tmp_path
):
    """A matrix that no loss depends on is named; nothing is charged."""
    from transformers import GPT2Config, GPT2LMHeadModel

    job = write_chat_job(
        tmp_path / "job",
        **OPTIONS
        | {
            "model__path": "gpt2",
            "cluster__workers": 1,
            "model__lora": None,
            "model__lora__targets": None,
            "model__lora__dropout": None,
        },
    )
    text = job.read_text().replace("lora: {}", "lora: null")
    job.write_text(text.replace("trainable: adapter", "trainable: all"))
    folder = tmp_path / "job" / "gpt2"
    config = GPT2Config(
        vocab_size=67,
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        add_cross_attention=True,
        bos_token_id=None,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for path in (tmp_path / "job" / "llama").glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for path in (tmp_path / "job" / "llama").glob("*.jinja"):
        (folder / path.name).write_bytes(path.read_bytes())

    create_budget(job)
    trainer = PrivateTrainer(job)
    with pytest.raises(ModelError, match=r"crossattention.* got no gradient") as caught:
        trainer.fit()
    assert caught.value.exit_code == 2
    status = run_status(trainer)
    assert (status.num_attempts, status.num_steps_charged) == (0, 0)
    assert status.num_looks_charged == 0
