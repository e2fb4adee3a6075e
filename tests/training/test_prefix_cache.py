"""Kept hidden states and features change nothing but the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pft_ray.training import prefix
from pft_ray.training.local import LocalWork
from pft_ray.training.optimizers import OptimizerSpec
from pft_ray.training.types import PrivateGrad
from tests.training.tiny import loaded, random_table, relative_error, spec_of

SGD = OptimizerSpec("sgd", 0.05, num_steps=10)
ROWS = np.array([0, 2, 3, 5, 8])


def pair(folder, kind, options, trainable):
    """Returns the same work with and without the cache."""
    table = random_table(9, seed=4)
    works = []
    for _ in range(2):
        model = loaded(spec_of(folder, kind, **options), torch.float32)
        works.append(LocalWork(model, table, max_micro_batch=4))
    works[1]._cache.start_phase = lambda _trainable: None
    for work in works:
        work.start_phase(trainable, SGD)
    return works


@pytest.mark.parametrize(
    ("kind", "options", "trainable", "level"),
    [
        ("bert", {}, "head", "features"),
        ("bert", {"lora": True, "layers": (2,)}, "head", "features"),
        ("bert", {"lora": True, "layers": (2,)}, "adapter+head", "hidden"),
        ("bert", {"lora": True, "layers": (1, 2)}, "adapter", "hidden"),
        ("bert", {"lora": True, "layers": (0,)}, "adapter", "none"),
        ("bert", {"lora": True, "layers": (0,)}, "head", "features"),
        ("bert", {}, "all", "none"),
        ("llama", {"lora": True, "layers": (1,)}, "adapter", "hidden"),
        ("llama-tied", {"lora": True, "layers": (2,)}, "adapter", "hidden"),
        (
            "llama",
            {
                "lora": True,
                "layers": (2,),
                "task": "classification",
                "pooling": "last",
            },
            "adapter+head",
            "hidden",
        ),
        ("gpt2", {"lora": True, "layers": (1,)}, "adapter", "none"),
    ],
)
def test_cached_and_uncached_sums_and_losses_are_equal(
    tiny_folders, kind, options, trainable, level
):
    cached, plain = pair(tiny_folders[kind], kind, options, trainable)
    assert cached.cache_level == level
    assert plain.cache_level == "none"
    other = random_table(6, seed=5)
    for _ in range(3):
        first = cached.clipped_sum(ROWS, 0.3).vector
        second = plain.clipped_sum(ROWS, 0.3).vector
        assert relative_error(first, second) < 1e-5
        assert float((first - second).abs().max()) < 1e-6
        for work, vector in ((cached, first), (plain, first)):
            work.apply(PrivateGrad(vector.float()))
        np.testing.assert_allclose(
            cached.evaluate_losses(other), plain.evaluate_losses(other), atol=1e-6
        )


class LayerCalls:
    """Counts how many records pass each layer of the stack."""

    def __init__(self, model):
        self.counts = {}
        for index, layer in enumerate(model.stack.encoder.layer):
            layer.register_forward_pre_hook(self._counter(index))

    def _counter(self, index):
        def count(_module, args):
            self.counts[index] = self.counts.get(index, 0) + len(args[0])

        return count


def test_frozen_layers_run_once_for_all_phases(tiny_folders):
    """Head first, then adapters on the last layer: layers 0 and 1 run once."""
    spec = spec_of(tiny_folders["bert"], "bert", lora=True, layers=(2,))
    model = loaded(spec, torch.float32)
    table = random_table(9, seed=4)
    work = LocalWork(model, table, max_micro_batch=3)
    calls = LayerCalls(model)
    work.start_phase("head", SGD)
    calls.counts.clear()  # of made-up records
    everyone = np.arange(9)
    for _ in range(3):
        work.clipped_sum(everyone, 1.0)
    assert calls.counts == {0: 9, 1: 9, 2: 9}
    work.start_phase("adapter+head", SGD)
    calls.counts.clear()
    for _ in range(3):
        work.clipped_sum(everyone, 1.0)
    assert calls.counts == {2: 27}


def test_only_the_blocks_asked_for_are_computed(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"), torch.float32)
    work = LocalWork(model, random_table(9, seed=4), max_micro_batch=3)
    calls = LayerCalls(model)
    work.start_phase("head", SGD)
    calls.counts.clear()  # of made-up records
    work.clipped_sum(np.array([1, 8]), 1.0)
    assert calls.counts[0] == 6


def test_kept_values_do_not_depend_on_the_order_of_use(tiny_folders):
    sums = []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 3, 0, 5, 1, 2, 7, 4, 6]):
        model = loaded(spec_of(tiny_folders["bert"], "bert"), torch.float32)
        work = LocalWork(model, random_table(9, seed=4), max_micro_batch=4)
        work.start_phase("head", SGD)
        for row in order:
            work.clipped_sum(np.array([row]), 1.0)
        sums.append(work.clipped_sum(np.arange(9), 1.0).vector)
    assert torch.equal(sums[0], sums[1])


def test_a_record_that_fails_in_the_frozen_part_is_zero(tiny_folders, monkeypatch):
    spec = spec_of(tiny_folders["bert"], "bert", lora=True, layers=(2,))
    table = random_table(9, seed=4)
    table.input_ids[table.input_ids == 39] = 38
    expected = None
    run = prefix.run_prefix

    def fragile(stack, family, batch, depth):
        if bool((batch.input_ids == 39).any()):
            raise ValueError
        return run(stack, family, batch, depth)

    monkeypatch.setattr(prefix, "run_prefix", fragile)
    for poison in (False, True):
        if poison:
            table.input_ids[4, 0] = 39
        work = LocalWork(loaded(spec, torch.float64), table, max_micro_batch=4)
        work._cache._probe = lambda: None
        work.start_phase("adapter+head", SGD)
        rows = np.arange(9) if poison else np.delete(np.arange(9), 4)
        found = work.clipped_sum(rows, 0.3).vector
        if not poison:
            expected = found
    assert float((found - expected).norm()) < 1e-12 * float(expected.norm())
    assert work.num_faulty == 1


def test_full_fine_tuning_leaves_no_stale_cache(tiny_folders):
    model = loaded(spec_of(tiny_folders["bert"], "bert"), torch.float64)
    table = random_table(9, seed=4)
    work = LocalWork(model, table, max_micro_batch=4)
    work.start_phase("head", SGD)
    work.clipped_sum(ROWS, 0.3)
    work.start_phase("all", SGD)
    work.apply(PrivateGrad(torch.randn(work.num_parameters)))
    work.start_phase("head", SGD)
    found = work.clipped_sum(ROWS, 0.3).vector
    fresh = LocalWork(model, table, max_micro_batch=4)
    fresh.start_phase("head", SGD)
    assert relative_error(found, fresh.clipped_sum(ROWS, 0.3).vector) < 1e-12
