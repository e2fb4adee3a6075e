"""Differentially private fine-tuning on Ray whose guarantee holds under failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Budget", "PrivateTrainer", "__version__", "create_budget", "reserve_job"]

if TYPE_CHECKING:
    from pft_ray.cluster.registration import create_budget
    from pft_ray.cluster.reservations import reserve_job
    from pft_ray.cluster.trainer import PrivateTrainer
    from pft_ray.ledger import Ledger as Budget

_LAZY = {
    "PrivateTrainer": ("pft_ray.cluster.trainer", "PrivateTrainer"),
    "create_budget": ("pft_ray.cluster.registration", "create_budget"),
    "reserve_job": ("pft_ray.cluster.reservations", "reserve_job"),
    "Budget": ("pft_ray.ledger", "Ledger"),
}


def __getattr__(name: str) -> Any:
    """Imports the heavy front doors only when they are used."""
    if name not in _LAZY:
        msg = f"module 'pft_ray' has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
