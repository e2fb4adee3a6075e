"""Static or adaptive: how rounds of the quickstart share one filter block."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pieces
import torch
from cards import Card, Figure, options

from pft_ray.accounting.allocation import (
    Allocation,
    Released,
    noise_multiplier_of_share,
)
from pft_ray.accounting.calibration import calibrate_noise_multiplier
from pft_ray.accounting.events import DiscreteGaussian, PoissonGaussian, Repeat
from pft_ray.accounting.filters import UNITS, best_order, epsilon_of_units
from pft_ray.accounting.plan import EvaluationPlan, Phase, Plan
from pft_ray.assurance.observed import released_utility
from pft_ray.assurance.utility import evaluation_utility
from pft_ray.cluster.specs import optimizer_spec
from pft_ray.cluster.step_keys import step_keys
from pft_ray.crypto import new_key, new_token
from pft_ray.ledger import FilterSpec, Ledger, RhoShare
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.local import LocalWork
from pft_ray.training.looks import look
from pft_ray.training.step import Alone, PrivateStep

if TYPE_CHECKING:
    from pft_ray.config import BuiltJob
    from pft_ray.data.tokens import TokenTable

SALTS = ("1", "2", "3")
BOOSTS = (1.0, 2.0)
# Rounds: which phase of the job, and how many of its steps.
ROUNDS = ((0, 20), (0, 20), (1, 10), (1, 10))
QUICK_ROUNDS = ((0, 2), (0, 2), (1, 1), (1, 1))
LOOK_EPSILON = 3.0
GRANT = 5


class Budget(NamedTuple):
    """What all rounds share, fixed before any of them: orders and noise of looks."""

    epsilon: float
    delta: float
    order: int
    look_order: int
    look_sigma: float


@dataclass
class Rounds:
    """One training in rounds, each a run of its own on the filter block."""

    built: BuiltJob
    tables: tuple[TokenTable, TokenTable]
    budget: Budget
    ledger: Ledger
    rounds: tuple[tuple[int, int], ...]
    released: list[Released] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)

    def train(self, allocation: Allocation) -> pieces.Scores:
        """Makes all rounds; returns the exact scores of the model (public data)."""
        training = self.built.job.training
        work = LocalWork(
            pieces.fresh_model(self.built),
            self.tables[0],
            max_micro_batch=training.max_micro_batch,
        )
        started = -1
        for number, (phase, steps) in enumerate(self.rounds):
            if phase != started:
                section = training.phases[phase]
                spec = optimizer_spec(training, section)
                work.start_phase(section.trainable, spec)
                started = phase
            weights = [count for _, count in self.rounds[number:]]
            self._round(work, allocation, (number, phase, steps), weights)
        targets = self.tables[1].targets
        assert targets is not None
        return pieces.score(work.evaluate_probabilities(self.tables[1]), targets)

    def _round(
        self,
        work: LocalWork,
        allocation: Allocation,
        place: tuple[int, int, int],
        weights: list[int],
    ) -> None:
        """Chooses the round's share from what was released, pays, trains and looks."""
        number, phase, steps = place
        status = self.ledger.block_status("train").filter
        assert status is not None
        units = allocation.share(status.remaining_rho_units, weights, self.released)
        self.parts.append(units / status.rho_units)
        plan = self._plan(units, phase, steps)
        self.sigmas.append(plan.noise_multiplier)
        assert plan.evaluation is not None
        run = f"round-{number}"
        order, look_order = self.budget.order, self.budget.look_order
        shares = [
            RhoShare.priced("train", "training", plan.event, order),
            RhoShare.priced(
                "validation", "evaluation", plan.evaluation.event, look_order
            ),
        ]
        self.ledger.reserve(run, plan, shares)
        epoch = self.ledger.take_epoch(run)
        attempt = self.ledger.open_attempt(run, epoch, 0, "start")
        step = PrivateStep(
            plan=plan,
            mechanism=SampledGaussian.from_plan(plan),
            work=work,
            unit_digests=self.tables[0].digests,
            collective=Alone(),
        )
        key = new_key()
        for start in range(0, steps, GRANT):
            stop = min(steps, start + GRANT)
            nonce = new_token().hex()
            self.ledger.charge_steps(run, epoch, attempt, start, stop, nonce)
            for index in range(start, stop):
                step.run(step_keys(plan, key, (run, attempt, index), 0, 1))
        self._look(work, plan, (run, epoch))
        self.ledger.end_run(run, epoch, "completed", steps)

    def _plan(self, units: int, phase: int, steps: int) -> Plan:
        job = self.built.job
        section = job.training.phases[phase]
        rate = self.built.plan.sample_rate
        sigma = noise_multiplier_of_share(
            units, order=self.budget.order, sample_rate=rate, num_steps=steps
        )
        return Plan(
            unit="record",
            size=job.data.num_train,
            sample_rate=rate,
            noise_multiplier=sigma,
            phases=(Phase("round", steps, section.trainable, section.clip_norm),),
            fault_reserve=0,
            delta=self.budget.delta,
            grant_size=GRANT,
            evaluation=EvaluationPlan(
                kind="classification",
                looks=(steps,),
                num_spare_looks=0,
                sigma=self.budget.look_sigma,
                size=job.data.num_validation,
                epsilon=LOOK_EPSILON,
                delta=self.budget.delta,
            ),
        )

    def _look(self, work: LocalWork, plan: Plan, owned: tuple[str, int]) -> None:
        run, epoch = owned
        assert plan.evaluation is not None
        number = self.ledger.charge_look(run, epoch, "end")
        counts = look(plan.evaluation, work, self.tables[1], new_key())
        self.ledger.store_release(run, epoch, number, {"counts": counts})
        main = next(iter(evaluation_utility(counts, plan.evaluation).values()))
        report = {"run_id": run, "utility": main.to_dict()}
        self.released.append(released_utility(report))


def budget_of(built: BuiltJob, rounds: tuple[tuple[int, int], ...]) -> Budget:
    """Fixes orders and noise for the declared workload: all rounds with one noise."""
    delta, steps = built.plan.delta, sum(count for _, count in rounds)
    rate = built.plan.sample_rate
    sigma = calibrate_noise_multiplier(
        target_epsilon=3.0,
        delta=delta,
        sample_rate=rate,
        num_steps=steps,
        accountant="rdp",
    )
    order = best_order(Repeat(PoissonGaussian(rate, sigma), steps), delta)
    assert built.plan.evaluation is not None
    looks = 2 * len(rounds)  # a look is two histograms
    look_sigma = built.plan.evaluation.sigma * 2
    look_order = best_order(Repeat(DiscreteGaussian(look_sigma, 1), looks), delta)
    return Budget(3.0, delta, order, look_order, look_sigma)


def new_ledger(folder: Path, budget: Budget) -> Ledger:
    """Makes a ledger with one filter block for training and one for looks."""
    ledger = Ledger.open(folder / "ledger.db", keys_dir=folder / "keys", create=True)
    rows = np.arange(32, dtype=np.uint8).reshape(2, 16)
    ledger.register_dataset("d", public=True, namespaces={"record": rows}, facts={})
    split = {"kind": "hash-split", "salt": "s", "validation_fraction": 0.2}
    for name, epsilon, order, purpose in (
        ("train", budget.epsilon, budget.order, "training"),
        ("validation", LOOK_EPSILON, budget.look_order, "evaluation"),
    ):
        ledger.filters.create(
            FilterSpec(
                name=name,
                dataset="d",
                predicate={**split, "role": name},
                unit="record",
                epsilon=epsilon,
                delta=budget.delta,
                order=order,
                purposes={purpose: 1.0},
            )
        )
    return ledger


def measure(card: Card, *, quick: bool) -> None:
    """Trains every split with every allocation, in turns."""
    torch.set_num_threads(os.cpu_count() or 1)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: dict[float, list[pieces.Scores]] = {boost: [] for boost in BOOSTS}
    for salt in SALTS[:1] if quick else SALTS:
        overrides = [f'data.split.salt="{salt}"', f"training.seed={salt}"]
        built = pieces.quickstart(overrides)
        tables = pieces.tables(built, 256 if quick else 0)
        budget = budget_of(built, rounds)
        for boost in BOOSTS:
            with (
                tempfile.TemporaryDirectory(prefix="pft-bench-") as folder,
                new_ledger(Path(folder), budget) as ledger,
            ):
                work = Rounds(built, tables, budget, ledger, rounds)
                scores = work.train(Allocation(boost))
                status = ledger.block_status("train").filter
            assert status is not None
            found[boost].append(scores)
            spent = epsilon_of_units(status.spent_rho_units, budget.delta, budget.order)
            card.notes.append(
                f"Split {salt}, boost {boost:g}: sigma by round "
                f"{', '.join(f'{sigma:.3g}' for sigma in work.sigmas)}; parts of rho "
                f"{', '.join(f'{part:.2f}' for part in work.parts)}; accuracy "
                f"{scores.accuracy:.4f}, AUROC {scores.auroc:.4f}; rho spent "
                f"{status.spent_rho_units / UNITS:.4f} of {status.rho:.4f} at order "
                f"{budget.order}, epsilon {spent:.4f}."
            )
            print(card.notes[-1], flush=True)
    fill(card, found)


def fill(card: Card, found: dict[float, list[pieces.Scores]]) -> None:
    """Puts means over the splits and the differences of pairs on the card."""
    static = found[1.0]
    for boost, scores in found.items():
        name = "static" if boost == 1.0 else f"adaptive, boost {boost:g}"
        card.figures += [
            Figure(f"{name}: accuracy", float(np.mean([s.accuracy for s in scores]))),
            Figure(f"{name}: AUROC", float(np.mean([s.auroc for s in scores]))),
        ]
        if boost != 1.0:
            pairs = zip(scores, static, strict=True)
            gains = [100 * (one.accuracy - other.accuracy) for one, other in pairs]
            card.figures += [
                Figure(
                    f"{name}: accuracy over static", float(np.mean(gains)), "points"
                ),
                Figure(f"{name}: the least of them", float(np.min(gains)), "points"),
            ]
    card.details["scores"] = {
        str(boost): [s._asdict() for s in scores] for boost, scores in found.items()
    }


def main() -> None:
    given = options()
    card = Card(
        "allocation",
        "Static and adaptive shares of one filter block",
        "allocation",
        "The quickstart's phases in four rounds, in one process. Each round is a run "
        "of its own on one filter block of epsilon 3 and pays for its noise and for "
        "one look at the validation block, whose released accuracy is all that the "
        "next round's share may depend on. Boost 1 shares what is left evenly by "
        "steps; with a larger one a round after one without visible gain weighs that "
        "many times more against those to come, and a round after a gain that many "
        "times less. Scores are exact: the mail is public.",
        quick=given.quick,
    )
    with tempfile.TemporaryDirectory(prefix="pft-bench-") as folder:
        os.environ |= {"HOME": folder, "PFT_HOME": str(Path(folder) / "home")}
        measure(card, quick=given.quick)
    sys.exit(0 if card.write(given.out) else 1)


if __name__ == "__main__":
    main()
