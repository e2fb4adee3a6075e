"""What each trainable set and adapter option trains, exactly, and how it is saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from pft_ray.errors import ModelError
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.release import load_released
from pft_ray.training.types import PrivateGrad
from tests.training.tiny import (
    loaded,
    naive_gradients,
    naive_sum,
    random_table,
    relative_error,
    spec_of,
)

SGD = OptimizerSpec(name="sgd", learning_rate=0.1, num_steps=10)
OPTIONS = {
    "rslora": ({"rslora": True}, "adapter"),
    "bias-all": ({"bias": "all"}, "adapter"),
    "bias-lora-only": ({"bias": "lora_only"}, "adapter+head"),
    "modules-to-save": ({"modules_to_save": ("LayerNorm",)}, "adapter"),
}


def with_options(folder, options, **kwargs):
    spec = spec_of(folder, "bert", lora=True, **kwargs)
    return replace(spec, lora=replace(spec.lora, **options))


@pytest.mark.parametrize("name", OPTIONS)
def test_adapter_options_are_exact_and_are_saved(tiny_folders, tmp_path, name):
    options, trainable = OPTIONS[name]
    spec = with_options(tiny_folders["bert"], options)
    model = loaded(spec)
    named = model.named_parts(trainable)
    names = [n for n, _ in named]
    plain = loaded(spec_of(tiny_folders["bert"], "bert", lora=True))
    extra = len(names) - len(plain.named_parts(trainable))
    assert extra == {"rslora": 0, "bias-lora-only": 6}.get(name, extra)
    assert extra > 0 or name == "rslora"
    table = random_table(5, seed=6)
    work = LocalWork(model, table, max_micro_batch=3)
    work.start_phase(trainable, SGD)
    assert not work.slow_reason
    gradients = naive_gradients(model, named, table)
    clip_norm = float(gradients.norm(dim=1).median())
    found = work.clipped_sum(np.arange(5), clip_norm).vector
    assert relative_error(found, naive_sum(gradients, clip_norm)) < 1e-10

    work.apply(PrivateGrad(found))
    model.save(tmp_path / "adapter", labels=("a", "b", "c"))
    read = load_released(tmp_path / "adapter", spec)
    read.module.double()
    losses = LocalWork(read, table, max_micro_batch=5).evaluate_losses(table)
    np.testing.assert_allclose(losses, work.evaluate_losses(table), rtol=1e-5)
    base = AutoModel.from_pretrained(tiny_folders["bert"])
    PeftModel.from_pretrained(base, str(tmp_path / "adapter"))  # peft alone reads it


def test_biases_alone_are_exact_and_are_saved_as_a_model(tiny_folders, tmp_path):
    spec = spec_of(tiny_folders["bert"], "bert")
    model = loaded(spec)
    named = model.named_parts("biases+head")
    assert all(n.endswith(".bias") or n.startswith("head.") for n, _ in named)
    assert len(named) > 20
    table = random_table(5, seed=6)
    work = LocalWork(model, table, max_micro_batch=3)
    work.start_phase("biases+head", SGD)
    gradients = naive_gradients(model, named, table)
    found = work.clipped_sum(np.arange(5), 0.5).vector
    assert relative_error(found, naive_sum(gradients, 0.5)) < 1e-10
    work.apply(PrivateGrad(found))
    model.save(tmp_path / "model", labels=("a", "b", "c"))
    read = load_released(tmp_path / "model", spec)
    read.module.double()
    losses = LocalWork(read, table, max_micro_batch=5).evaluate_losses(table)
    np.testing.assert_allclose(losses, work.evaluate_losses(table), rtol=1e-5)


def test_base_weights_and_adapters_are_not_mixed(tiny_folders):
    model = loaded(with_options(tiny_folders["bert"], {}))
    with pytest.raises(ModelError, match="base model is to be trained"):
        model.named_parts("biases+head")


def test_a_checkpointed_phase_resumes(tiny_folders):
    spec = replace(spec_of(tiny_folders["gpt2"], "gpt2"), gradient_checkpointing=True)
    table = random_table(4, seed=2)
    works = []
    for _ in range(2):
        work = LocalWork(loaded(spec, torch.float32), table, max_micro_batch=4)
        work.start_phase("all", SGD)
        works.append(work)
    works[0].apply(PrivateGrad(works[0].clipped_sum(np.arange(4), 1.0).vector.float()))
    works[1].load_state(works[0].state())
    first, second = (w.clipped_sum(np.arange(4), 1.0).vector for w in works)
    assert torch.equal(first, second)
