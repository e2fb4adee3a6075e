"""The rule, where one way is cheaper beyond doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.training.clipping import costs

SIDES = st.integers(8, 4096)


@pytest.mark.parametrize(("rows", "cols"), [(768, 768), (4096, 384), (30522, 384)])
def test_one_token_is_never_formed_and_long_records_are(rows, cols):
    """One token: 2 m n against 31 m n. T >= 30: its own product costs more."""
    assert costs.factors_are_cheaper(1, rows, cols)
    assert not costs.factors_are_cheaper(64, rows, cols)


def test_adapters_are_formed():
    """Rank 8: T^2 inner products outweigh a gradient of 8 n numbers."""
    for num_tokens in (16, 64, 128, 1024):
        assert not costs.factors_are_cheaper(num_tokens, 8, 768)
        assert not costs.inner_products_are_cheaper(num_tokens, 8, 768)


def test_wide_layers_with_few_tokens_take_inner_products():
    """2 T (1/m + 1/n) < 1: the threshold of Li et al. 2022 and Bu et al. 2023."""
    assert costs.inner_products_are_cheaper(64, 384, 1536)
    assert not costs.inner_products_are_cheaper(512, 384, 1536)


@given(num_tokens=st.integers(1, 4096), rows=SIDES, cols=SIDES)
def test_more_tokens_never_speak_for_the_factors(num_tokens, rows, cols):
    if not costs.factors_are_cheaper(num_tokens, rows, cols):
        assert not costs.factors_are_cheaper(num_tokens + 1, rows, cols)
    if not costs.inner_products_are_cheaper(num_tokens, rows, cols):
        longer = 4 * num_tokens + 8
        assert not costs.inner_products_are_cheaper(longer, rows, cols)
