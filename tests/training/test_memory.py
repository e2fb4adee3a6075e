"""The micro-batch follows a stated limit; sums and charges do not follow it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pft_ray.errors import ModelError
from pft_ray.training import local
from pft_ray.training.local import LocalWork
from pft_ray.training.memory import largest_micro_batch, peak_bytes
from pft_ray.training.optimizers import OptimizerSpec
from tests.training.tiny import loaded, random_table, relative_error, spec_of

MIB = 1 << 20
SGD = OptimizerSpec(name="sgd", learning_rate=0.1, num_steps=10)


def test_the_peak_is_the_process_own():
    before = peak_bytes(lambda: None)
    grown = peak_bytes(lambda: np.ones(200 * MIB, dtype=np.uint8).sum())
    assert 190 * MIB < grown - before < 260 * MIB
    after = peak_bytes(lambda: None)
    assert after < grown - 150 * MIB, "an earlier peak is not counted again"


@pytest.mark.parametrize(("limit", "found"), [(799, 4), (800, 8), (1e9, 11), (100, 1)])
def test_the_largest_that_fits_is_found(monkeypatch, limit, found):
    sizes = []
    monkeypatch.setattr(
        "pft_ray.training.memory.peak_bytes", lambda run: 100 * run() or sizes
    )

    def run(size):
        sizes.append(size)
        return size

    assert largest_micro_batch(run, 11, limit) == found
    assert sizes[0] == 1
    assert max(sizes) <= 11


def test_a_limit_below_one_record_is_refused(monkeypatch):
    monkeypatch.setattr("pft_ray.training.memory.peak_bytes", lambda run: 2 << 30)
    with pytest.raises(ModelError, match=r"One record needs 2\.00 GiB; .* 1\.00 GiB"):
        largest_micro_batch(lambda size: size, 8, 1 << 30)


def test_running_out_of_memory_is_not_fitting():
    def run(size):
        if size > 4:
            raise MemoryError
        return size

    assert largest_micro_batch(run, 64, 1 << 50) == 4

    def broken(_size):
        raise RuntimeError("another thing")

    with pytest.raises(RuntimeError, match="another thing"):
        largest_micro_batch(broken, 64, 1 << 50)


def test_the_probe_uses_no_record_and_changes_no_sum(tiny_folders, monkeypatch):
    table = random_table(9, seed=4)
    spec = spec_of(tiny_folders["bert"], "bert")
    plain = LocalWork(loaded(spec), table, max_micro_batch=8)
    plain.start_phase("head", SGD)
    monkeypatch.setattr(local, "largest_micro_batch", lambda run, most, _: run(3) or 3)
    fitted = LocalWork(
        loaded(spec), table, max_micro_batch=8, memory_limit_bytes=1 << 30
    )
    monkeypatch.setattr(fitted._cache, "batch", lambda _rows: pytest.fail("a record"))
    fitted.start_phase("head", SGD)
    monkeypatch.undo()
    assert (plain.micro_batch, fitted.micro_batch) == (8, 3)
    everyone = np.arange(9)
    first = plain.clipped_sum(everyone, 0.5).vector
    assert relative_error(fitted.clipped_sum(everyone, 0.5).vector, first) < 1e-12


def test_checkpointing_changes_memory_and_nothing_else(tiny_folders):
    from dataclasses import replace

    table = random_table(6, seed=5)
    spec = spec_of(tiny_folders["llama"], "llama")
    sums, kept = [], []
    for checkpointing in (False, True):
        model = loaded(replace(spec, gradient_checkpointing=checkpointing))
        work = LocalWork(model, table, max_micro_batch=6)
        work.start_phase("all", SGD)
        total = [0]

        def count(tensor, total=total):
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            sums.append(work.clipped_sum(np.arange(6), 0.5).vector)
        kept.append(total[0])
        assert not any(
            m.training for m in model.module.modules() if "Dropout" in type(m).__name__
        )
    assert relative_error(sums[1], sums[0]) < 1e-12
    assert kept[1] < 0.7 * kept[0]


def test_a_model_without_checkpointing_is_refused():
    from pft_ray.training.loading import checkpoint_layers

    class Plain(torch.nn.Linear):
        def gradient_checkpointing_enable(self, _kwargs):
            raise ValueError("does not support it")

    with pytest.raises(ModelError, match="Plain has no gradient checkpointing"):
        checkpoint_layers(Plain(2, 2))


LIMITS = """
import numpy as np
from pft_ray.training.memory import largest_micro_batch, peak_bytes

MIB = 1 << 20
start = peak_bytes(lambda: None)

def run(size):  # 40 MiB a record, in small blocks
    blocks = [np.ones(MIB // 8, dtype=np.uint64) for _ in range(40 * size)]

run(20)
print(int(peak_bytes(lambda: None) < start + 100 * MIB))
for _ in range(2):  # as two phases would
    print(largest_micro_batch(run, 64, start + 220 * MIB))
    lines = open("/proc/self/status").read().splitlines()
    (now,) = (line for line in lines if line.startswith("VmRSS:"))
    print(int(1024 * int(now.split()[1]) < start + 100 * MIB))
"""


def test_what_a_probe_left_does_not_count_in_the_next():
    """A limit of 220 MiB holds four records of 40; eight are tried and freed."""
    keeps = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
    command = [sys.executable, "-c", LIMITS]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | keeps
    )
    assert done.stdout.split() == ["1", "4", "1", "4", "1"]
