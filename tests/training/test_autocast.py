"""bf16 forward passes: near the fp32 sum, and never above the bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import loaded, random_table, relative_error, spec_of

SGD = OptimizerSpec("sgd", 0.05, num_steps=10)
TABLE = random_table(8, seed=4, lengths=[7, 2, 3, 4, 5, 6, 7, 7])
TABLE.loss_mask[:] = 1
CASES = [
    ("bert", "all"),
    ("bert", "adapter+head"),
    ("gpt2-tied", "all"),
    ("llama", "all"),
    ("llama", "adapter"),
]


def work_on(folder, kind, trainable, **options):
    spec = spec_of(folder, kind, lora="adapter" in trainable)
    model = loaded(replace(spec, **options), torch.float32)
    work = LocalWork(model, TABLE, max_micro_batch=8)
    work.start_phase(trainable, SGD)
    assert work.slow_reason == ""
    return work


@pytest.mark.parametrize(("kind", "trainable"), CASES)
def test_products_run_in_bf16_and_contributions_stay_bounded(
    tiny_folders, kind, trainable
):
    exact = work_on(tiny_folders[kind], kind, trainable)
    rough = work_on(tiny_folders[kind], kind, trainable, autocast=True)
    everyone = np.arange(8)
    error = relative_error(
        rough.plain_sum(everyone).double(), exact.plain_sum(everyone).double()
    )
    # bf16 keeps 8 bits, and these weights are wild: hundredths, not the 1e-6 of fp32.
    assert 1e-3 < error < 0.25
    for row in everyone:
        one = rough.clipped_sum(np.array([row]), 0.05).vector
        assert 0.05 * (1 - 1e-4) < float(one.norm()) <= 0.05
    np.testing.assert_array_equal(
        rough.evaluate_losses(TABLE), exact.evaluate_losses(TABLE)
    )
    assert rough.num_faulty == 0


def test_it_works_with_checkpointed_layers(tiny_folders):
    sums = [
        work_on(
            tiny_folders["llama"],
            "llama",
            "all",
            autocast=True,
            gradient_checkpointing=checkpointing,
        ).clipped_sum(np.arange(8), 0.05)
        for checkpointing in (False, True)
    ]
    assert relative_error(sums[1].vector, sums[0].vector) < 1e-6
