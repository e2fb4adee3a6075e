"""The agent job: how much of the non-private gain in perplexity privacy leaves.

Whole runs through Ray on three splits, each with the same recipe without privacy; the
exact losses of the untouched model, of both trained ones and what was released. Needs
the chat model's package: make agent-model.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from cards import Card, Figure, options

from pft_ray.cluster import fit
from pft_ray.cluster.local import ray_cluster
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.specs import model_spec, optimizer_spec
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.cluster.worker import Worker, WorkerSettings
from pft_ray.config import BuiltJob, build_job, load_job
from pft_ray.data.paths import resolve_model_path
from pft_ray.data.prepare import prepare_data
from pft_ray.data.tokenize import load_tokenizer, tokenize_table
from pft_ray.ledger.home import pft_home
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.local import LocalWork
from pft_ray.training.models import load_model
from pft_ray.training.types import PrivateGrad

if TYPE_CHECKING:
    from pft_ray.data.tokens import TokenTable

JOB = Path(__file__).parents[1] / "jobs" / "agent_mail.yaml"
SALTS = ("1", "2", "3")
SHARE = 0.7  # required; the goal is 0.75
LIMIT_S = 720
EXACT = "exact-loss.txt"
_PUBLIC_KEY = b"agent benchmark, public data    "
# Toy sizes: two small steps on short chats.
QUICK = ["data.max_length=48", "training.batch_size=16", "training.phases.0.steps=2"]


class ExactWorker(Worker):
    """A worker that also writes the exact loss of a look: the mail is public."""

    def _evaluate(self, key: bytes) -> list[int]:
        table = self.inputs.validation
        assert table is not None
        loss = float(self.work.evaluate_losses(table).mean())
        Path(self.settings.run_dir, EXACT).write_text(repr(loss), encoding="utf-8")
        return super()._evaluate(key)


def train_exact(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point, in the place of the ordinary one."""
    return ExactWorker(WorkerSettings(**settings)).run()


@dataclass(frozen=True)
class Outcome:
    """One split: mean losses of the held-out mails, in nats a token.

    Attributes:
        before: Of the model as it came.
        private: After the job.
        released: After the job, as its report says it.
        non_private: Same recipe without noise and clipping.
        elapsed_s: From data to report, the privacy-free run not counted.
    """

    before: float
    private: float
    released: float
    non_private: float
    elapsed_s: float

    @property
    def share(self) -> float:
        """Recovered share of the non-private gain in log-perplexity."""
        return (self.before - self.private) / (self.before - self.non_private)


def overrides_of(salt: str, home: Path, *, quick: bool) -> list[str]:
    """Returns what one split changes in the job."""
    return [
        f'data.split.salt="{salt}"',
        f"training.seed={salt}",
        f"output={home / 'runs'}",
        *(QUICK if quick else []),
    ]


def run_job(overrides: list[str]) -> tuple[float, float, float]:
    """Runs the whole job; returns exact loss, released loss and seconds."""
    create_budget(JOB, overrides=overrides)
    start = time.perf_counter()
    result = PrivateTrainer(JOB, overrides=overrides).fit(new=True)
    elapsed = time.perf_counter() - start
    if result.report is None:
        sys.exit(f"the run ended as {result.status}")
    metrics = result.report["utility_all"][-1]["metrics"]
    released = next(m["private"] for m in metrics if m["metric"] == "loss")
    exact = float((result.folder / EXACT).read_text(encoding="utf-8"))
    return exact, float(released), elapsed


def tables(built: BuiltJob) -> tuple[TokenTable, TokenTable]:
    """Returns the training and validation chats."""
    data = built.job.data
    prepared = prepare_data(data.spec(built.base_dir), _PUBLIC_KEY)
    path = resolve_model_path(built.job.model.path, built.base_dir)
    tokenizer = load_tokenizer(path)
    train, _ = tokenize_table(prepared.train, tokenizer, data.max_length, "causal_lm")
    held, _ = tokenize_table(
        prepared.validation, tokenizer, data.max_length, "causal_lm"
    )
    return train, held


def plain_losses(built: BuiltJob) -> tuple[float, float]:
    """Trains without privacy; returns the mean held-out loss before and after."""
    torch.set_num_threads(os.cpu_count() or 1)
    train, held = tables(built)
    training, plan = built.job.training, built.plan
    model = load_model(model_spec(built.job, built.base_dir))
    work = LocalWork(model, train, max_micro_batch=training.max_micro_batch)
    (section,) = training.phases
    work.start_phase(section.trainable, optimizer_spec(training, section))
    before = float(work.evaluate_losses(held).mean())
    mechanism = SampledGaussian.from_plan(plan)
    for step in range(plan.num_steps):
        key = _PUBLIC_KEY[:31] + bytes([step])
        total = work.plain_sum(mechanism.sample(key, train.digests))
        work.apply(PrivateGrad(total / plan.expected_batch_size))
    return before, float(work.evaluate_losses(held).mean())


def run_split(salt: str, home: Path, *, quick: bool) -> Outcome:
    """Runs the job on one split, in a ledger of its own, and the plain recipe."""
    overrides = overrides_of(salt, home, quick=quick)
    exact, released, elapsed = run_job(overrides)
    built = build_job(load_job(JOB, overrides), JOB.parent)
    before, after = plain_losses(built)
    found = Outcome(before, exact, released, after, elapsed)
    print(f"  split {salt}: {found}, share {found.share:.3f}", flush=True)
    return found


def words_of(salt: str, found: Outcome) -> str:
    """Returns one split's results as a sentence."""
    return (
        f"Split {salt}: perplexity {math.exp(found.before):.1f} before, "
        f"{math.exp(found.private):.1f} private (released "
        f"{math.exp(found.released):.1f}), {math.exp(found.non_private):.1f} without "
        f"privacy; share {found.share:.3f}; {found.elapsed_s:.0f} s."
    )


def fill(card: Card, outcomes: list[Outcome]) -> None:
    """Fills the card."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(found, name) for found in outcomes]))

    card.figures = [
        Figure(
            "share of the non-private gain in log-perplexity, same recipe",
            mean("share"),
            at_least=SHARE,
        ),
        Figure("perplexity before, exact", math.exp(mean("before"))),
        Figure("perplexity, epsilon 8, exact", math.exp(mean("private"))),
        Figure("perplexity, epsilon 8, released", math.exp(mean("released"))),
        Figure("perplexity, non-private, exact", math.exp(mean("non_private"))),
        Figure("from data to report, mean", mean("elapsed_s"), "s", at_most=LIMIT_S),
    ]
    card.notes = [
        words_of(salt, found) for salt, found in zip(SALTS, outcomes, strict=False)
    ]
    card.details = {"splits": [vars(found) for found in outcomes]}


def main() -> None:
    given = options()
    salts = SALTS[:1] if given.quick else SALTS
    card = Card(
        "agent_mail",
        "Agent: mail from its subject at epsilon 8",
        "agent_mail",
        f"jobs/agent_mail.yaml, whole runs through Ray with two workers; means of "
        f"{len(salts)} splits by sender, each with an initialisation and noise of its "
        "own. Perplexities are exponentials of mean losses. Exact ones may be shown "
        "because the mail is public; the released one carries the charged noise of "
        "its look and cuts losses off at the bound. Non-private: same recipe, no "
        "noise, no clipping. The recipe was searched on split 1 of this data. The "
        "model's package was unpacked before.",
        quick=given.quick,
    )
    model_home = pft_home() / "models"
    resolve_model_path(load_job(JOB).model.path, JOB.parent)  # unpacks it once
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    fit.train_worker = train_exact
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        homes = [Path(folder) / salt for salt in salts]
        # Workers keep the environment that the cluster starts with.
        (Path(folder) / "models").symlink_to(model_home)
        os.environ |= {"HOME": folder, "PFT_HOME": folder}
        with ray_cluster(None, num_cpus=2):
            for salt, home in zip(salts, homes, strict=True):
                home.mkdir()
                (home / "models").symlink_to(model_home)
                os.environ["PFT_HOME"] = str(home)
                outcomes.append(run_split(salt, home, quick=given.quick))
    fill(card, outcomes)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
