"""Draws workers and charged steps of an elastic run over time. For the operator."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pft_ray.telemetry import EventTail
from pft_ray.training.headers import write_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCALING_PLOT = "scaling.svg"
_WORKERS, _STEPS = "#2b6cb0", "#a0aec0"
_MARKS = {"grow": "^", "shrink": "v", "note": "x"}


def size_curve(events: Iterable[dict[str, Any]]) -> list[tuple[float, int]]:
    """Returns (time, workers) whenever the size changed; time in seconds since 1970."""
    curve: list[tuple[float, int]] = []
    for event in events:
        if event["event"] == "resized":
            size = event["num_workers"][1]
        elif event["event"] == "scaling" and "workers" in event:
            size = event["workers"]
        else:
            continue
        if not curve or curve[-1][1] != size:
            curve.append((event["time"], size))
    return curve


def write_scaling_plot(folder: Path) -> None:
    """Writes scaling.svg (mode 0600) from a run's events; nothing without a decision.

    Args:
        folder: The run's folder, which holds events.jsonl.
    """
    events = EventTail(folder / "events.jsonl", whole=True).new()
    curve = size_curve(events)
    if not curve:
        return
    path = folder / SCALING_PLOT
    for place in (path, path.with_name(path.name + ".tmp")):
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600))
    write_file(path, _draw(events, curve))


def _draw(events: list[dict[str, Any]], curve: list[tuple[float, int]]) -> bytes:
    begin, end = events[0]["time"], events[-1]["time"]
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    times = [time_s - begin for time_s, _ in curve]
    sizes = [size for _, size in curve]
    axes.step([*times, end - begin], [*sizes, sizes[-1]], where="post", color=_WORKERS)
    for event in events:
        mark = _MARKS.get(event.get("action", ""))
        if event["event"] == "scaling" and mark:
            axes.plot(event["time"] - begin, event["workers"], mark, color=_WORKERS)
        elif event["event"] == "resized":
            axes.axvline(event["time"] - begin, color=_WORKERS, linestyle=":")
    axes.set_ylim(0, max(sizes) + 0.5)
    axes.locator_params(axis="y", integer=True)
    axes.set_xlabel("seconds since the start (^ grow, v shrink, x note, ... resize)")
    axes.set_ylabel("workers", color=_WORKERS)
    charged = [(e["time"] - begin, e["charged"]) for e in events if "charged" in e]
    if charged:
        second = axes.twinx()
        second.step(*zip(*charged, strict=True), where="post", color=_STEPS)
        second.set_ylabel("steps charged")
        second.set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
