"""Which way to the norms and the weighted sum of a matrix is cheapest.

For B records of T positions and a matrix of m rows and n columns, costs are counted in
fp32 multiplications a record (one in fp64 counts as two):

    form the gradient in fp32               T m n
    read a formed gradient for its norm     NORM_PASS m n
    read a formed gradient for the sum      SUM_PASS m n
    norm from inner products in fp64        2 T^2 (m + n)
    weighted sum of the factors in fp64     2 T m n

The passes were measured on a CPU with AVX-512; the choice changes speed and memory, and
results only within the rounding that norms allow for.
"""

from __future__ import annotations

NORM_PASS = 5
SUM_PASS = 25


def factors_are_cheaper(num_tokens: int, rows: int, cols: int) -> bool:
    """Returns whether a matrix is best never formed, however much memory there is."""
    passes = NORM_PASS + SUM_PASS
    held = 2 * num_tokens**2 * (rows + cols) + 2 * num_tokens * rows * cols
    return held < (num_tokens + passes) * rows * cols


def inner_products_are_cheaper(num_tokens: int, rows: int, cols: int) -> bool:
    """Returns whether norms of held factors are best taken from inner products.

    The other way forms the gradients tile by tile and drops them again.
    """
    inner = 2 * num_tokens**2 * (rows + cols)
    return inner < (num_tokens + NORM_PASS) * rows * cols


def tiles_are_cheaper(num_tokens: int) -> bool:
    """Returns whether forming tiles beats the weighted product of factors in fp64."""
    return num_tokens > NORM_PASS + SUM_PASS
