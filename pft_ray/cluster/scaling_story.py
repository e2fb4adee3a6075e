"""What a run's events tell of its scaling: resizes and decisions. For the operator."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pft_ray.telemetry import EventTail

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def scaling_story(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the resizes of a run and how many decisions were told.

    Args:
        events: Lines of the run's events.jsonl. Notes are no decisions.

    Returns:
        ``resizes``, each with step, from, to (workers) and time (seconds since 1970),
        and ``scaling_decisions``, their number.
    """
    resizes: list[dict[str, Any]] = []
    num_decisions = 0
    for event in events:
        if event.get("event") == "resized":
            before, after = event["num_workers"]
            resizes.append(
                {
                    "step": event["step"],
                    "from": before,
                    "to": after,
                    "time": event["time"],
                }
            )
        elif event.get("event") == "scaling" and event["action"] != "note":
            num_decisions += 1
    return {"resizes": resizes, "scaling_decisions": num_decisions}


def read_story(path: Path) -> dict[str, Any]:
    """Returns :func:`scaling_story` of an events file; an absent one tells nothing."""
    return scaling_story(EventTail(path, whole=True).new())


def event_words(event: dict[str, Any]) -> str | None:
    """Returns a decision or resize in one line; None for any other event."""
    if event.get("event") == "resized":
        before, after = event["num_workers"]
        words = f"resized {before} -> {after} at step {event['step']}, same attempt"
    elif event.get("event") == "scaling":
        words = f"{decision_words(event)}: {event['reason']}"
    else:
        return None
    return f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {words}"


def decision_words(told: dict[str, Any]) -> str:
    """Returns what was decided, in a few words."""
    if told["action"] not in ("grow", "shrink"):
        return str(told["action"])
    asked = sum(item["count"] for item in told.get("add", ()))
    more = f" (asks for {asked} more node{'s' if asked > 1 else ''})" if asked else ""
    return f"{told['action']} to {told['num_workers']}{more}"


def impact_words(impact: dict[str, Any] | None) -> str:
    """Returns what a change does to shares, time and cost; what is not known is left.

    Args:
        impact: The decision's assessment as JSON, or None.
    """
    if impact is None:
        return ""
    parts = []
    before, after = impact["shares_before"], impact["shares_after"]
    if before and after:
        change = f"{_range(before)} -> {_range(after)} of {after['denominator']}"
        parts.append(f"noise shares a rank {change}")
    for name, title, form in (
        ("time_{}_s", "time", "{:.0f} s"),
        ("money_{}", "money", "{:.2f}"),
        ("node_hours_{}", "node-hours", "{:.2f}"),
    ):
        pair = [impact[name.format(when)] for when in ("before", "after")]
        if title == "node-hours" and any(p.startswith("money") for p in parts):
            continue
        if None not in pair:
            told = " -> ".join(form.format(value) for value in pair)
            parts.append(f"{title} {told}")
    return ", ".join(parts)


def _range(split: dict[str, Any]) -> str:
    least, most = split["least"], split["most"]
    return str(most) if least == most else f"{least}-{most}"
