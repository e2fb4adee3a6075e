"""How much of a step is spent waiting for the coordinator, in real runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pieces
from cards import Card, Figure

# phase, name, most of a step that may be spent waiting (a ratio)
PHASES = ((0, "head", 0.05), (1, "LoRA", 0.01))
_NOT_STEPS = ("data_key", "dataset_commitment", "mark_non_private")
_KINDS = {
    "request": "grants",
    "ask_ahead": "grants",
    "progress": "progress",
    "checkpoint_registered": "checkpoint rows",
}
_STEADY = ("grants", "progress", "checkpoint rows")


def shares_of(notes: dict[str, Any], first: int, last: int) -> dict[str, float]:
    """Returns one rank's seconds a step in the steps [first, last).

    Args:
        notes: What the rank noted.
        first: First step of the phase.
        last: One past its last step.
    """
    steps = [s for number, s in notes["steps"] if first <= number < last]
    saved = [s for number, s in notes["checkpoints"] if first < number <= last]
    found = dict.fromkeys((*_STEADY, "once"), 0.0)
    for number, method, waited in notes["calls"]:
        if method in _NOT_STEPS:
            continue
        # A grant is asked for before its steps, the rest happens after a step; the
        # attempt is opened before the first.
        inside = first < number <= last or number == first == 0
        if method in ("request", "ask_ahead"):
            inside = first <= number < last
        if inside:
            kind = _KINDS.get(method, "once")
            if method == "request" and number == 0:
                kind = "once"  # the first grant was not asked for ahead
            found[kind] += waited / len(steps)
    found["steady"] = sum(found[kind] for kind in _STEADY)
    found["waiting"] = found["steady"] + found["once"]
    found["checkpoints"] = sum(saved) / len(steps)
    found["step"] = float(np.median(steps))
    return found


def coordinator_card(runs: list[list[dict[str, Any]]], *, quick: bool) -> Card:
    """Returns the card of several runs; the rank that waits longest counts."""
    plan = pieces.quickstart().plan
    card = Card(
        "coordinator",
        "The coordinator's share of a step",
        "quickstart",
        f"The runs of the quickstart card: jobs/quickstart.yaml through Ray, two "
        f"workers, grants of {plan.grant_size} steps, a checkpoint every "
        f"{plan.checkpoint_interval}. Waiting: time in calls of the coordinator, "
        "spread over the phase's steps, of the rank that waits longest. In every step "
        "or every few: grants, progress, checkpoint rows; once a run or phase: opening "
        "the attempt, the first grant, the look. A step: the median from its "
        "keys to the end of the optimiser; the first step of the head phase, which "
        "fills the cache of the frozen layers, does not move it. A share is waiting "
        "over waiting and step. Means of the runs.",
        quick=quick,
    )
    card.details = {"runs": runs}
    ends = sorted(int(step) for step in runs[0][0]["scores"])
    for phase, name, limit in PHASES:
        first, last = (0, ends[0]) if phase == 0 else (ends[0], ends[1])
        found = []
        for ranks in runs:
            rows = [shares_of(notes, first, last) for notes in ranks]
            found.append(max(rows, key=lambda row: row["waiting"]))
        mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        card.figures += phase_figures(name, mean, limit)
    card.notes.append(
        "Goal for the LoRA step: 0.5 %. What happens once is spread over the "
        f"phase's {ends[0]} and {ends[1] - ends[0]} steps."
    )
    return card


def phase_figures(name: str, mean: dict[str, float], limit: float) -> list[Figure]:
    """Returns the figures of one phase; ``limit`` is the most that may be waiting."""
    figures = [
        Figure(
            f"{name} step: share of what happens in every step or every few",
            100 * mean["steady"] / (mean["step"] + mean["steady"]),
            "%",
            at_most=100 * limit,
        ),
        Figure(
            f"{name} step: share of all waiting",
            100 * mean["waiting"] / (mean["step"] + mean["waiting"]),
            "%",
        ),
        Figure(f"{name} step", 1000 * mean["step"], "ms"),
    ]
    words = {
        "grants": "waiting for grants",
        "progress": "sending progress",
        "checkpoint rows": "checkpoint rows",
        "once": "what happens once (attempt, first grant, look)",
        "checkpoints": "checkpoints as a whole",
    }
    figures += [
        Figure(f"{name} phase, a step: {word}", 1000 * mean[key], "ms")
        for key, word in words.items()
    ]
    return figures
