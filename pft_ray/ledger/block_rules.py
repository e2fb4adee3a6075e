"""Rules for data sets and blocks.

Each rule is a pair: ``check`` raises and changes nothing, ``advance`` changes the
state and cannot fail after its check. Both see the state only, no clock, no storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pft_ray.accounting.plan import Plan
from pft_ray.errors import InputError, PlanError
from pft_ray.ledger.entries import SCHEMA_VERSION, Body, Entry, label
from pft_ray.ledger.owner_blocks import (
    check_owner_cut,
)
from pft_ray.ledger.records import Block, Dataset
from pft_ray.ledger.windows import check_window

if TYPE_CHECKING:
    from pft_ray.ledger.state import LedgerState

_HEX = frozenset("0123456789abcdef")


def check_hex(value: str, name: str, num_digits: int) -> None:
    """Checks that ``value`` is lower-case hex of the length given."""
    if len(value) != num_digits or not _HEX.issuperset(value):
        raise InputError(f"{name} is not {num_digits} lower-case hex digits.")


def check_genesis(state: LedgerState, body: Body) -> None:
    """The first entry, and only the first, names the ledger and its schema."""
    if state.sequence:
        raise InputError("A second genesis entry.")
    check_hex(body["ledger_id"], "ledger_id", 32)
    if body["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"A ledger of schema {body['schema']}; this pft_ray reads "
            f"{SCHEMA_VERSION}.",
            "Upgrade pft_ray.",
        )


def advance_genesis(state: LedgerState, entry: Entry) -> None:
    """Gives the ledger its id."""
    state.ledger_id = entry.body["ledger_id"]


def check_dataset(state: LedgerState, body: Body) -> None:
    """A name is registered once, with at least one namespace."""
    name = label(body["name"], "The data set")
    if name in state.datasets:
        raise InputError(f"A data set {name!r} is registered already.")
    namespaces = body["namespaces"]
    if not namespaces or sorted(set(namespaces)) != namespaces:
        raise InputError("Namespaces have to be distinct and sorted.")
    for namespace in namespaces:
        label(namespace, "A namespace")
    check_hex(body["commitment"], "commitment", 32)
    check_hex(body["key_check"], "key_check", 32)
    known = state.key_check
    if known is not None and known != body["key_check"]:
        raise InputError("The data set was fingerprinted under another key.")


def advance_dataset(state: LedgerState, entry: Entry) -> None:
    """Adds the data set."""
    fields = {**entry.body, "namespaces": tuple(entry.body["namespaces"])}
    state.datasets[fields["name"]] = Dataset(**fields)


def check_block(state: LedgerState, body: Body) -> None:
    """A block of mode plan; one of mode filter has a kind of its own."""
    if body["mode"] != "plan":
        raise InputError(
            f"Block {body['name']!r} asks for mode {body['mode']!r}.",
            "Blocks of this kind have mode plan; ledger.filters makes filter blocks.",
        )
    check_definition(state, body)


def check_definition(state: LedgerState, body: Body) -> None:
    """A block is new, lies in a registered data set and holds some budget."""
    name = label(body["name"], "The block")
    if name in state.blocks:
        raise InputError(f"A block {name!r} exists already.")
    namespaces = state.dataset(body["dataset"]).namespaces
    check_owner_cut(name, body["predicate"], namespaces)
    check_window(name, body["predicate"], namespaces)
    if not isinstance(body["predicate"].get("kind"), str):
        raise InputError(
            f"The predicate of block {name!r} has no kind.",
            'Give one such as {"kind": "hash-split", ...}.',
        )
    if body["unit"] not in ("record", "user"):
        raise InputError(
            f"The unit of block {name!r} is {body['unit']!r}.",
            "Units are record and user.",
        )
    if body["epsilon_units"] < 1 or not 1 <= body["delta_units"] < 10**18:
        raise InputError(
            f"Block {name!r} has no usable budget.",
            "Give epsilon above 0 and delta between 0 and 1.",
        )


def advance_block(state: LedgerState, entry: Entry) -> None:
    """Adds the block."""
    block = Block(**entry.body)
    state.blocks[block.name] = block


def check_non_private(state: LedgerState, body: Body) -> None:
    """A run without a guarantee is possible on public data only."""
    dataset = state.dataset(body["dataset"])
    label(body["run"], "The run")
    if body["block"] and state.block(body["block"]).dataset != dataset.name:
        raise InputError(
            f"Block {body['block']!r} is not part of data set {dataset.name!r}."
        )
    if not dataset.public:
        raise InputError(
            f"A non-private run on {dataset.name!r}, which is private data.",
            "Only data registered as public can be used without a guarantee.",
            {"dataset": dataset.name},
        )


def advance_non_private(state: LedgerState, entry: Entry) -> None:
    """Marks the data set, and the block when one is named."""
    dataset, block = entry.body["dataset"], entry.body["block"]
    state.num_non_private[dataset] = state.num_non_private.get(dataset, 0) + 1
    if block:
        state.blocks[block].num_non_private += 1


def read_plan(data: Any) -> Plan:
    """Reads a stored plan; whatever is wrong with it is a :class:`PlanError`."""
    try:
        return Plan.from_dict(data)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError("The plan of a reservation cannot be read.") from error
