"""Filter blocks for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.accounting.events import Repeat
from pft_ray.ledger import FilterSpec, Ledger, RhoShare
from tests.ledger.builders import SPLIT, make_plan

if TYPE_CHECKING:
    from pft_ray.accounting.plan import Plan

ORDER = 4
FILTER, LOOKS = "mail-filter", "mail-filter-validation"


def filter_spec(**changes: Any) -> FilterSpec:
    """A filter block of epsilon 30 at order 4: training 0.6, tuning 0.3."""
    fields: dict[str, Any] = {
        "name": FILTER,
        "dataset": "mail",
        "predicate": {**SPLIT, "role": "train"},
        "unit": "record",
        "epsilon": 30.0,
        "delta": 1e-5,
        "order": ORDER,
        "purposes": {"training": 0.6, "tuning": 0.3},
    }
    return FilterSpec(**{**fields, **changes})


def add_filter_blocks(ledger: Ledger, **changes: Any) -> None:
    """A training and a validation block of mode filter on the data set "mail"."""
    ledger.filters.create(filter_spec(**changes))
    ledger.filters.create(
        filter_spec(
            name=LOOKS,
            predicate={**SPLIT, "role": "validation"},
            purposes={"evaluation": 1.0},
        )
    )


def make_shares(
    plan: Plan, purpose: str = "training", *, order: int = ORDER, train: str = FILTER
) -> list[RhoShare]:
    """The shares that a plan asks for: all steps from one purpose, all looks."""
    shares = [RhoShare.priced(train, purpose, plan.event, order)]
    if plan.evaluation is not None:
        look = plan.evaluation.event
        shares.append(RhoShare.priced(LOOKS, "evaluation", look, order))
    return shares


def make_epochs(plan: Plan, *counts: int) -> list[RhoShare]:
    """Shares for steps divided among ``training/epoch-1``, ``-2`` ..."""
    return [
        RhoShare.priced(
            FILTER, f"training/epoch-{i}", Repeat(plan.step_event, count), ORDER
        )
        for i, count in enumerate(counts, start=1)
    ]


def start_filter_run(
    ledger: Ledger, run_id: str = "run", **changes: Any
) -> tuple[int, int]:
    """Reserves a filter run, takes its epoch, opens an attempt: (epoch, attempt)."""
    plan = make_plan(**changes)
    ledger.reserve(run_id, plan, make_shares(plan))
    epoch = ledger.take_epoch(run_id)
    return epoch, ledger.open_attempt(run_id, epoch, 0, "start")


def purpose(ledger: Ledger, name: str = "training", block: str = FILTER) -> Any:
    """The status of one purpose."""
    (found,) = [
        item for item in ledger.block_status(block).filter.purposes if item.name == name
    ]
    return found
