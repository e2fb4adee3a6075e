"""Defaults of a plan that follow from its number of steps."""

from __future__ import annotations


def default_interval(num_steps: int) -> int:
    """Returns the default checkpoint interval and grant size for T planned steps."""
    return max(1, min(5, num_steps // 20))


def default_fault_reserve(
    num_steps: int, checkpoint_interval: int, grant_size: int
) -> int:
    """Returns the default fault reserve: max(T/20, checkpoint interval + grant)."""
    return max(-(-num_steps // 20), checkpoint_interval + grant_size)
