"""Blocks of owners: whose units are in a block, by a public cut of its predicate.

The part ``owner`` of a block's predicate names the owner and the rule by which a record
is its own: the value of ``field`` is the owner's name, or, with a ``salt``, the hash of
that value lies in the part [from / of, to / of) of its range.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pft_ray.errors import InputError
from pft_ray.ledger.budget import envelope_epsilon_units

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pft_ray.accounting.plan import Plan
    from pft_ray.ledger.budget import Envelope
    from pft_ray.ledger.records import Block

_BY_NAME = {"name", "field"}
_BY_HASH = _BY_NAME | {"salt", "of", "from", "to"}
# Kinds of fingerprints that hold each record together with its value of a column, or
# are made of that value.
_COMMITTING = ("owner", "split", "record")


def owner_of(predicate: Mapping[str, Any]) -> str | None:
    """Returns the owner whose units a block holds; None for a block of all."""
    cut: Any = predicate.get("owner")
    return str(cut["name"]) if _is_cut(cut) else None


def are_apart(cut: Any, other: Any) -> bool:
    """Whether no record can be in both cuts.

    Guarantee:
        Both are decided by the same column of the record, by the same rule: its value
        is one of two different names, or one hash of it lies in one of two parts that
        do not overlap. A record has one value, so it is in one of them at most.
        Whatever is not such a pair of cuts is not known to be apart.
    """
    if not _is_cut(cut) or not _is_cut(other) or set(cut) != set(other):
        return False
    if cut["field"] != other["field"]:
        return False
    if "salt" not in cut:
        return bool(cut["name"] != other["name"])
    if (cut["salt"], cut["of"]) != (other["salt"], other["of"]):
        return False
    return bool(cut["to"] <= other["from"] or other["to"] <= cut["from"])


def _is_cut(cut: Any) -> bool:
    if not isinstance(cut, dict) or set(cut) not in (_BY_NAME, _BY_HASH):
        return False
    texts = _BY_NAME if set(cut) == _BY_NAME else {*_BY_NAME, "salt"}
    if not all(isinstance(cut[key], str) and cut[key] for key in texts):
        return False
    if texts == _BY_NAME:
        return True
    places = [cut["from"], cut["to"], cut["of"]]
    if not all(type(place) is int for place in places):
        return False
    return bool(0 <= places[0] < places[1] <= places[2])


def check_owner_cut(
    block: str, predicate: Mapping[str, Any], namespaces: Collection[str]
) -> None:
    """Refuses a block of an owner that the registration does not hold to.

    Guarantee:
        The registration of a block of an owner commits to each record together with
        the value that decides its owner: a record cannot be moved to another owner's
        block after the first owner's was charged.

    Raises:
        InputError: The cut cannot be read, or the registration does not commit to it.
    """
    cut = predicate.get("owner")
    if cut is None:
        return
    if not _is_cut(cut):
        raise InputError(
            f"The owner of block {block!r} is not a cut.",
            'Give {"name", "field"}, with a hash also {"salt", "of", "from", "to"}.',
        )
    column = cut["field"]
    if not any(f"{kind}:{column}" in namespaces for kind in _COMMITTING):
        raise InputError(
            f"The data of block {block!r} were registered without the owners that "
            f"column {column!r} tells.",
            "Columns that cut blocks are fixed when data are first registered: cut "
            "blocks without these owners.",
            {"block": block},
        )


def check_owner_envelopes(
    plan: Plan, envelopes: Sequence[Envelope], blocks: Mapping[str, Block]
) -> None:
    """A plan with owners pays each owner's own event from that owner's own block.

    Args:
        plan: A plan with owners.
        envelopes: All envelopes of the reservation.
        blocks: Their blocks by name.

    Guarantee:
        Every owner has one training envelope, on a block that holds its units and no
        other owner's of the plan, for what T_max steps do to a unit of that owner. So
        each unit is charged on the block that it lies in, for what is done to it.

    Raises:
        InputError: An owner is missing, or one of its envelope's event, epsilon or
            block is another's.
    """
    assert plan.owners is not None
    paid: dict[str, Envelope] = {}
    for envelope in envelopes:
        if envelope.purpose != "training":
            continue
        predicate = blocks[envelope.block].predicate
        name = owner_of(predicate)
        if name is None or name in paid or predicate.get("role") != "train":
            found = "no owner's training block"
            if name in paid:
                found = f"a second one of {name!r}"
            raise InputError(
                f"The block {envelope.block!r} is {found}.",
                "Reserve on one training block of each owner of the plan.",
            )
        paid[name] = envelope
    names = {owner.name for owner in plan.owners.members}
    if names != set(paid):
        wrong = sorted(names ^ set(paid))[0]
        what = "has no training envelope" if wrong in names else "is not in the plan"
        raise InputError(
            f"Owner {wrong!r} {what}.", "Reserve on one block of each owner."
        )
    for number, owner in enumerate(plan.owners.members):
        envelope = paid[owner.name]
        if envelope.event != plan.owner_event(number):
            raise InputError(
                f"The envelope of owner {owner.name!r} pays for another event than "
                "that of its units.",
                "What is charged is what is executed: build it from the plan.",
            )
        if envelope.epsilon_units < envelope_epsilon_units(owner.epsilon):
            raise InputError(
                f"The envelope of owner {owner.name!r} holds less epsilon than the "
                "owner declares."
            )
    _check_apart([blocks[envelope.block] for envelope in paid.values()])


def _check_apart(blocks: list[Block]) -> None:
    """Cuts of one rule, in order: neighbours are apart, hence all of them."""

    def place(block: Block) -> tuple[int, str]:
        cut = block.predicate["owner"]
        return cut.get("from", 0), cut["name"]

    ordered = sorted(blocks, key=place)
    for block, other in pairwise(ordered):
        if not block.is_disjoint_from(other):
            raise InputError(
                f"Blocks {block.name!r} and {other.name!r} may hold the same units.",
                "Reserve on blocks of owners that one rule cuts from one split.",
            )
