"""The quickstart: what its model is worth, and what the coordinator costs a step."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pieces
import torch
from cards import Card, Figure, options
from coordinator_share import coordinator_card
from measured_worker import by_value, read_notes, train_measured
from plain import Found, Plain

from pft_ray.cluster import fit
from pft_ray.cluster.local import ray_cluster
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer

SALTS = ("1", "2", "3")
SHARE = 0.9
# Toy sizes: two short phases on short texts.
QUICK = [
    "data.max_length=16",
    "training.phases=[{name: head, steps: 10, trainable: head, clip_norm: 1.0, "
    "learning_rate: 0.03}, {name: lora, steps: 5, trainable: adapter+head, "
    "clip_norm: 0.1, learning_rate: 0.01, head_learning_rate: 0.02}]",
]


@dataclass
class Outcome:
    """One seed: a split, an initialisation and the run's own noise."""

    overrides: list[str]
    report: dict[str, Any]
    notes: list[dict[str, Any]]
    elapsed_s: float

    def released(self, name: str) -> dict[str, Any]:
        """Returns a released measure of the finished model."""
        last = self.report["utility_all"][-1]
        return next(m for m in last["metrics"] if m["metric"] == name)

    def exact(self, look: int = -1) -> dict[str, float]:
        """Returns the exact scores at a look: the data are public."""
        scores = self.notes[0]["scores"]
        return scores[sorted(scores, key=int)[look]]


def run_seed(salt: str, home: Path, *, quick: bool) -> Outcome:
    """Runs the whole job on one split, in a ledger and home of its own."""
    os.environ |= {"HOME": str(home), "PFT_HOME": str(home / "pft")}
    overrides = [
        f'data.split.salt="{salt}"',
        f"training.seed={salt}",
        f"output={home / 'runs'}",
        *(QUICK if quick else []),
    ]
    create_budget(pieces.JOB, overrides=overrides)
    start = time.perf_counter()
    result = PrivateTrainer(pieces.JOB, overrides=overrides).fit(new=True)
    elapsed = time.perf_counter() - start
    if result.report is None:
        sys.exit(f"the run on split {salt} ended as {result.status}")
    print(f"  split {salt}: {elapsed:.0f} s", flush=True)
    return Outcome(overrides, result.report, read_notes(result.folder), elapsed)


def mean_of(values: list[float]) -> float:
    """Returns the mean over the seeds."""
    return float(np.mean(values))


def utility_card(card: Card, outcomes: list[Outcome], plain: list[list[Found]]) -> None:
    """Fills the card: private, majority and both non-private references."""
    majority = mean_of([o.exact()["majority"] for o in outcomes])
    found = {
        name: mean_of([o.released(name)["private"] for o in outcomes])
        for name in ("accuracy", "auroc")
    }
    same = {
        name: mean_of([o.released(name)["non_private"] for o in outcomes])
        for name in ("accuracy", "auroc")
    }
    exact = {
        name: mean_of([o.exact()[name] for o in outcomes])
        for name in ("accuracy", "auroc")
    }
    best = {
        name: mean_of([max(getattr(f.scores, name) for f in split) for split in plain])
        for name in ("accuracy", "auroc")
    }
    gain = found["accuracy"] - majority
    card.figures = [
        Figure(
            "share of the non-private gain over the majority, same recipe",
            gain / (same["accuracy"] - majority),
            at_least=SHARE,
        ),
        Figure(
            "the same against the best non-private found",
            gain / (best["accuracy"] - majority),
        ),
        Figure("accuracy, epsilon 3, released", found["accuracy"]),
        Figure("accuracy, epsilon 3, exact", exact["accuracy"]),
        Figure(
            "accuracy after the head phase, exact",
            mean_of([o.exact(0)["accuracy"] for o in outcomes]),
        ),
        Figure("accuracy, majority", majority),
        Figure("accuracy, non-private, same recipe", same["accuracy"]),
        Figure("accuracy, best non-private found", best["accuracy"]),
        Figure("AUROC, epsilon 3, released (binned)", found["auroc"]),
        Figure("AUROC, epsilon 3, exact", exact["auroc"]),
        Figure("AUROC, non-private, same recipe (binned)", same["auroc"]),
        Figure("AUROC, best non-private found", best["auroc"]),
        Figure(
            "from data to report, mean",
            mean_of([o.elapsed_s for o in outcomes]),
            "s",
            at_most=180,
        ),
    ]
    for outcome, tried, salt in zip(outcomes, plain, SALTS, strict=False):
        card.notes.append(seed_words(outcome, tried, salt))
    card.details = {
        "reports": [outcome.report for outcome in outcomes],
        "exact": [outcome.notes[0]["scores"] for outcome in outcomes],
        "non_private": [
            {f.recipe: f.scores._asdict() for f in split} for split in plain
        ],
    }


def seed_words(outcome: Outcome, tried: list[Found], salt: str) -> str:
    """Returns one seed's results as a sentence."""
    parts = []
    for name in ("accuracy", "auroc"):
        measure = outcome.released(name)
        low, high = measure["interval"]
        parts.append(
            f"{name} released {measure['private']:.4f} (noise interval "
            f"{low:.4f} to {high:.4f}), exact "
            f"{outcome.exact()[name]:.4f}, non-private {measure['non_private']:.4f}"
        )
    best = max(tried, key=lambda f: f.scores.accuracy)
    return (
        f"Split {salt}: {'; '.join(parts)}; majority "
        f"{outcome.exact()['majority']:.4f}; best non-private "
        f"{best.scores.accuracy:.4f} / {best.scores.auroc:.4f} by {best.recipe}."
    )


def try_plain(outcome: Outcome, *, quick: bool) -> list[Found]:
    """Trains without privacy on the split of a run."""
    torch.set_num_threads(os.cpu_count() or 1)
    built = pieces.quickstart(outcome.overrides)
    train, validation = pieces.tables(built, 256 if quick else 0)
    return Plain(built, train, validation).everything()


def main() -> None:
    given = options()
    salts = SALTS[:1] if given.quick else SALTS
    card = Card(
        "quickstart",
        "Quickstart: spam or ham at epsilon 3",
        "quickstart",
        f"jobs/quickstart.yaml, whole runs through Ray with two workers; means of "
        f"{len(salts)} seeds, a seed being a split by sender, an initialisation and "
        "the run's own noise. Released values carry the charged noise of the looks; "
        "exact ones may be shown because the mail is public. The non-private runs of "
        "the same recipe (no noise, no clipping) are part of the job. The best "
        "non-private result is picked a split and a measure by the very scores that "
        "are shown, which favours it. The recipe was searched on this data.",
        quick=given.quick,
    )
    by_value()
    fit.train_worker = train_measured
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        homes = [Path(folder) / salt for salt in salts]
        with ray_cluster(None, num_cpus=2):
            outcomes = [
                run_seed(salt, home, quick=given.quick)
                for salt, home in zip(salts, homes, strict=True)
            ]
    shares = coordinator_card([o.notes for o in outcomes], quick=given.quick)
    good = shares.write(given.out)
    utility_card(card, outcomes, [try_plain(o, quick=given.quick) for o in outcomes])
    good = card.write(given.out) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
