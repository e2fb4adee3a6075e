"""Decisions about size and speed, from public figures alone: no torch, no Ray."""
