"""Policies as a user might plug them in."""

from __future__ import annotations


def raising(snapshot):
    raise ValueError("a text that may quote anything")
