"""Bodies of new entries, built from the caller's arguments and checked for type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.plan import canonical_json
from pft_ray.crypto import new_token
from pft_ray.errors import InputError
from pft_ray.ledger.budget import block_delta_units, block_epsilon_units
from pft_ray.ledger.entries import (
    GENESIS_PREVIOUS,
    SCHEMA_VERSION,
    Body,
    Entry,
    Position,
    make_entry,
    natural,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.shares import RhoShare


@dataclass(frozen=True)
class BlockSpec:
    """The definition of a block, as :meth:`Ledger.create_block` takes it.

    Attributes:
        name: The block's name.
        dataset: The registration it is cut from.
        predicate: Public rule that says which units are in it, for example
            ``{"kind": "hash-split", "salt": ..., "role": "train",
            "validation_fraction": ...}``.
        unit: ``record`` or ``user``.
        epsilon: Budget, rounded down to 1e-9.
        delta: Budget, rounded down to 1e-18.
    """

    name: str
    dataset: str
    predicate: Mapping[str, Any]
    unit: str
    epsilon: float
    delta: float


def genesis() -> Entry:
    """Returns the first entry of a new ledger, with a fresh random id."""
    body = {"ledger_id": new_token().hex(), "schema": SCHEMA_VERSION}
    return make_entry(Position(0, GENESIS_PREVIOUS), "genesis", body)


def plain(value: Any) -> Any:
    """Returns the value as plain JSON of its own.

    Raises:
        InputError: JSON cannot hold it (NaN and infinity are refused).
    """
    try:
        return json.loads(canonical_json(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            "A value for the ledger is not plain JSON.",
            "Give finite numbers, strings, lists and objects only.",
        ) from error


def of_run(run_id: str, **integers: int) -> Body:
    """Returns a body with the run and integers; refuses what is not an integer."""
    return {"run_id": run_id} | {
        name: natural(value, name) for name, value in integers.items()
    }


def block(spec: BlockSpec) -> Body:
    """Returns the body of a block; its budget is rounded down to whole units."""
    return {
        "name": spec.name,
        "dataset": spec.dataset,
        "predicate": plain(dict(spec.predicate)),
        "unit": spec.unit,
        "mode": "plan",
        "epsilon_units": block_epsilon_units(spec.epsilon),
        "delta_units": block_delta_units(spec.delta),
    }


def reservation(
    run_id: str, name: str, plan: Plan, envelopes: Sequence[Envelope | RhoShare]
) -> Body:
    """Returns the body of a reservation."""
    return {
        "run_id": run_id,
        "name": name,
        "plan": plan.to_dict(),
        "plan_digest": plan.digest,
        "envelopes": [envelope.to_dict() for envelope in envelopes],
        # Fresh bits: nobody who guesses the rows before it can check the guess
        # against the root that a report shows.
        "blind": new_token().hex(),
    }
