"""Every row comes out once, in order, whatever some rows do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.errors import ModelError
from pft_ray.training.clipping import UnsupportedUseError
from pft_ray.training.totality import is_out_of_memory, run_totally


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 12),
    bad=st.sets(st.integers(0, 11)),
    most=st.integers(1, 12),
)
def test_only_bad_rows_are_lost(size, bad, most):
    def compute(part):
        if len(part) > most:
            raise MemoryError
        if bad & set(part.tolist()):
            raise ValueError
        return part.sum()

    rows = np.arange(size)
    pieces = list(run_totally(rows, compute, lambda: None)) if size else []
    seen = np.concatenate([part for part, _ in pieces]) if pieces else rows
    assert seen.tolist() == rows.tolist()
    lost = {int(part[0]) for part, result in pieces if result is None}
    assert lost == bad & set(range(size))
    assert all(len(part) == 1 for part, result in pieces if result is None)


def test_errors_about_the_model_are_not_swallowed():
    def compute(_part):
        raise ModelError("the model", "change it")

    with pytest.raises(ModelError):
        list(run_totally(np.arange(3), compute, lambda: None))


def test_a_stop_by_the_user_is_not_swallowed():
    def compute(_part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_totally(np.arange(3), compute, lambda: None))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_out_of_memory_is_told_apart(error, expected):
    assert is_out_of_memory(error) is expected


def test_an_unknown_use_of_one_record_is_the_records_own():
    """Made-up records did not show it, so it depends on what the record holds."""

    def compute(rows):
        if 3 in rows:
            raise UnsupportedUseError("In a branch that few records take.")
        return len(rows)

    found = list(run_totally(np.arange(5), compute, lambda: None))
    assert [(rows.tolist(), result) for rows, result in found] == [
        ([0], 1),
        ([1], 1),
        ([2], 1),
        ([3], None),
        ([4], 1),
    ]
