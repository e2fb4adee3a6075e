"""A ledger on disk with one reserved run, for tests of coordinator and loop."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pft_ray.accounting.plan import EvaluationPlan, Phase, Plan
from pft_ray.cluster.coordinator import Coordinator, CoordinatorConfig
from pft_ray.ledger import BlockSpec, Envelope, Ledger


def make_plan(**changes) -> Plan:
    """Two phases of 6 steps, grants of 3, reserve of 5, looks after 6 and 12."""
    fields = {
        "unit": "record",
        "size": 400,
        "sample_rate": 0.1,
        "noise_multiplier": 2.0,
        "phases": (Phase("one", 6, "head", 1.0), Phase("two", 6, "head", 0.5)),
        "fault_reserve": 5,
        "delta": 1e-5,
        "target_epsilon": 8.0,
        "num_shares": 2,
        "grant_size": 3,
        "checkpoint_interval": 3,
        "evaluation": EvaluationPlan(
            kind="classification",
            looks=(6, 12),
            num_spare_looks=1,
            sigma=4.0,
            size=100,
            epsilon=8.0,
            delta=1e-5,
        ),
    }
    return Plan(**(fields | changes))


@dataclass
class Reserved:
    """A reserved run in a ledger of its own."""

    folder: Path
    plan: Plan
    run_id: str = "run-1"

    @property
    def url(self) -> str:
        return str(self.folder / "ledger.db")

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def config(self) -> CoordinatorConfig:
        return CoordinatorConfig(
            self.url, str(self.keys), self.run_id, str(self.folder / "anchor.json")
        )

    def coordinator(self, cls: type[Coordinator] = Coordinator) -> Coordinator:
        return cls(self.config())

    def ledger(self) -> Ledger:
        return Ledger.open(self.url, keys_dir=self.keys)


def reserve(folder: Path, **changes) -> Reserved:
    """Makes the ledger, registers 400 made-up units and reserves the run."""
    plan = make_plan(**changes)
    reserved = Reserved(folder, plan)
    ledger = Ledger.open(reserved.url, keys_dir=reserved.keys, create=True)
    ledger.fingerprint_key()
    rows = [hashlib.sha256(f"unit {i}".encode()).digest()[:16] for i in range(400)]
    units = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)
    ledger.register_dataset(
        "d",
        public=False,
        namespaces={"record": units, "owner:tenant": units},
        facts={},
    )
    accounts = {"d/train": plan.event}
    if plan.owners is not None:
        names = [owner.name for owner in plan.owners.members]
        accounts = {f"d/train/{n}": plan.owner_event(i) for i, n in enumerate(names)}
    for name in (*accounts, "d/validation"):
        role, *owner = name.split("/")[1:]
        cut = {"owner": {"name": owner[0], "field": "tenant"}} if owner else {}
        split = {"kind": "hash-split", "salt": "1", "validation_fraction": 0.2}
        ledger.create_block(
            BlockSpec(
                name=name,
                dataset="d",
                predicate={**split, "role": role, **cut},
                unit="record",
                epsilon=80.0,
                delta=1e-4,
            )
        )
    envelopes = [
        Envelope.priced(name, "training", 8.0, 1e-5, event)
        for name, event in accounts.items()
    ]
    if plan.evaluation is not None:
        envelopes.append(
            Envelope.priced(
                "d/validation", "evaluation", 8.0, 1e-5, plan.evaluation.event
            )
        )
    ledger.reserve(reserved.run_id, plan, envelopes)
    ledger.close()
    return reserved
