"""The project's logger: to stderr, so that ``--json`` owns stdout."""

from __future__ import annotations

import logging

LOGGER_NAME = "pft_ray"


def get_logger(name: str = LOGGER_NAME) -> logging.Logger:
    """Returns a logger below ``pft_ray``; no handler is attached here."""
    return logging.getLogger(name)
