"""Accounts of owners: which blocks are disjoint, and what a plan has to reserve."""

from __future__ import annotations

from itertools import permutations

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import Repeat
from pft_ray.accounting.owners import Owner, Owners
from pft_ray.errors import BudgetError, InputError
from pft_ray.ledger import BlockSpec, Envelope
from pft_ray.ledger.records import Block
from pft_ray.ledger.verify import verify
from tests.ledger.builders import SPLIT, VALIDATION, fingerprints, make_plan

DELTA = 1e-5
OWNERS = Owners(
    "sample",
    (
        Owner("a", 300, 1.0, 0.02),
        Owner("b", 300, 2.0, 0.05),
        Owner("c", 400, 4.0, 0.12),
    ),
)
NAMED = {"field": "tenant"}
HASHED = {"field": "sender", "salt": "o", "of": 1000}
CUTS = {
    "a": {"name": "a", **HASHED, "from": 0, "to": 300},
    "b": {"name": "b", **HASHED, "from": 300, "to": 600},
    "c": {"name": "c", **HASHED, "from": 600, "to": 1000},
}


def block(owner=None, *, role="train", dataset="mail", unit="record", **split):
    predicate = {**SPLIT, "role": role, **split}
    if owner is not None:
        predicate["owner"] = owner
    return Block("x", dataset, predicate, unit, "plan", 1, 1)


def apart(one, other):
    found = {a.is_disjoint_from(b) for a, b in permutations((one, other))}
    assert len(found) == 1, "whichever way it is asked"
    return found.pop()


def test_owners_of_one_rule_and_one_split_are_disjoint():
    for one, other in permutations(CUTS.values(), 2):
        assert apart(block(one), block(other))
    named = [{"name": name, **NAMED} for name in "ab"]
    assert apart(block(named[0]), block(named[1]))
    assert apart(block(CUTS["a"], unit="user"), block(CUTS["b"], unit="user"))


def test_an_owner_and_the_other_role_of_the_split_are_disjoint():
    held_out = block(role="validation")
    assert apart(block(CUTS["a"]), held_out)
    assert apart(block(CUTS["a"]), block(CUTS["a"], role="validation"))
    assert apart(block(CUTS["a"]), block(CUTS["b"], role="validation"))
    assert apart(block(), block(CUTS["a"], role="validation"))


A, B = CUTS["a"], CUTS["b"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (block(A), block()),  # the whole training block holds its units, too
        (block(A), block(A)),
        (block(A), block(B, dataset="mail2")),
        (block(A), block(B, unit="user")),
        (block(A), block(B, salt="t")),
        (block(A), block(B, validation_fraction=0.3)),
        (block(A), block(B, field="sender")),
        (block(A, kind="all"), block(B, kind="all")),
        (block(A, role="x"), block(B, role="y")),
        (block(A), block(A | {"name": "b"})),  # another name for the same units
        (block(A), block(B | {"from": 299})),  # one part of the range in both
        (block(A), block(B | {"salt": "p"})),
        (block(A), block(B | {"field": "id"})),
        (block(A), block(B | {"of": 1001})),
        (block(A), block({"name": "b", "field": "sender"})),
        (block({"name": "a", **NAMED}), block({"name": "a", **NAMED})),
        (block({"name": "a", **NAMED}), block({"name": "b", "field": "team"})),
        (block(A), block(B | {"from": True, "to": 600})),
        (block(A), block({"name": "b"})),
        (block(A), block("b")),
    ],
)
def test_what_is_not_proven_apart_overlaps(one, other):
    assert not apart(one, other)


@pytest.fixture
def owned(empty_ledger):
    """A ledger with an account for each owner, and a validation block."""
    empty_ledger.register_dataset(
        "mail",
        public=False,
        namespaces={
            "record": fingerprints(0, 50),
            "owner:sender": fingerprints(50, 50),
        },
        facts={},
    )
    for name, cut in CUTS.items():
        create(empty_ledger, name, {**SPLIT, "role": "train", "owner": cut})
    create(empty_ledger, "whole", {**SPLIT, "role": "train"})
    create(empty_ledger, VALIDATION, {**SPLIT, "role": "validation"})
    return empty_ledger


def create(ledger, name, predicate, **changes):
    fields = {"unit": "record", "epsilon": 8.0, "delta": 1e-4} | changes
    ledger.create_block(BlockSpec(name, "mail", predicate, **fields))


def owners_plan(**changes):
    return make_plan(owners=OWNERS, noise_multiplier=2.0, **changes)


def account(plan, number, *, name=None, price=None, event=None):
    owner = OWNERS.members[number]
    return Envelope.priced(
        name or owner.name,
        "training",
        price or owner.epsilon,
        plan.delta,
        event or plan.owner_event(number),
    )


def look(plan, price=1.0):
    event = plan.evaluation.event
    return Envelope.priced(VALIDATION, "evaluation", price, DELTA, event)


def test_each_account_pays_for_its_own_owner(owned):
    plan = owners_plan()
    owned.reserve("run", plan, [account(plan, i) for i in range(3)] + [look(plan)])
    for name, taken in (("a", 1.0), ("b", 2.0), ("c", 4.0), (VALIDATION, 1.0)):
        status = owned.block_status(name)
        assert (status.reserved_epsilon, status.num_reservations) == (taken, 1)
        assert "whole" in status.overlapping or name == VALIDATION
    assert owned.block_status("whole").reserved_epsilon == 0
    assert owned.block_status("a").overlapping == ("whole",)
    (run,) = verify(owned).runs
    spent = {check.owner: check.epsilon for check in run.envelopes}
    for number, owner in enumerate(OWNERS.members):
        assert spent[owner.name] == epsilon(plan.owner_event(number), DELTA)
    assert run.epsilon == max(spent.values()), "disjoint blocks: the largest"
    assert (run.envelope, run.delta) == (4.0, DELTA)


def refused(ledger, plan, envelopes, says):
    before = ledger.position()
    with pytest.raises(InputError, match=says):
        ledger.reserve("run", plan, envelopes)
    assert ledger.position() == before
    assert ledger.runs() == []


def test_every_owner_has_to_be_paid_for(owned):
    plan = owners_plan()
    every = [account(plan, number) for number in range(3)] + [look(plan)]
    for missing, name in enumerate("abc"):
        rest = every[:missing] + every[missing + 1 :]
        refused(owned, plan, rest, f"'{name}' has no training envelope")
    refused(owned, plan, every[3:], "training envelope")
    whole = Envelope.priced("whole", "training", 4.0, DELTA, plan.event)
    refused(owned, plan, [whole, every[3]], "no owner's")
    refused(owned, plan, [*every, whole], "no owner's")


def test_an_owner_is_paid_for_at_its_own_event_and_epsilon(owned):
    plan = owners_plan()
    every = [account(plan, number) for number in range(3)] + [look(plan)]
    for number, name in enumerate("abc"):
        own = plan.owner_event(number)
        short = Repeat(own.event, plan.num_steps)  # without the fault reserve
        wrong = [plan.owner_event((number + 1) % 3), short]
        wrong += [plan.event] if name != "c" else []
        for event in wrong:
            changed = list(every)
            changed[number] = account(plan, number, event=event)
            refused(owned, plan, changed, f"owner '{name}' pays for another event")
        cheap = OWNERS.members[number].epsilon - 1e-9
        changed = list(every)
        changed[number] = account(plan, number, price=cheap)
        refused(owned, plan, changed, f"owner '{name}' holds less epsilon")
        changed[number] = Envelope.priced(name, "training", 4.0, 9e-6, own)
        refused(owned, plan, changed, "less delta")


def test_the_block_of_another_owner_or_rule_is_refused(owned):
    plan = owners_plan(evaluation=None)
    every = [account(plan, number) for number in range(3)]
    swapped = [account(plan, 0, name="b"), account(plan, 1, name="a"), every[2]]
    refused(owned, plan, swapped, "another event")
    predicate = {**SPLIT, "role": "train"}
    create(owned, "d", {**predicate, "owner": CUTS["a"] | {"name": "d"}})
    refused(owned, plan, [account(plan, 0, name="d"), *every[1:]], "'a' has no")
    refused(owned, plan, [*every, account(plan, 0, name="d")], "'d' is not in the plan")
    create(owned, "a2", {**predicate, "owner": CUTS["a"] | {"to": 301}})
    refused(owned, plan, [account(plan, 0, name="a2"), *every[1:]], "same units")
    refused(owned, plan, [*every, account(plan, 0, name="a2")], "second one of 'a'")
    create(owned, "a3", {**predicate, "salt": "t", "owner": CUTS["a"]})
    refused(owned, plan, [account(plan, 0, name="a3"), *every[1:]], "same units")
    held_out = {**SPLIT, "role": "validation"}
    create(owned, "b4", {**held_out, "owner": CUTS["b"]})
    refused(
        owned, plan, [every[0], account(plan, 1, name="b4"), every[2]], "no owner's"
    )
    owned.check_reservation(plan, every)


def test_one_account_that_is_short_refuses_all_and_names_its_owner(owned):
    plan = owners_plan()
    every = [account(plan, number) for number in range(3)] + [look(plan)]
    for number in range(2):  # the account of c holds two runs
        owned.reserve(f"run-{number}", plan, every)
    before = owned.position()
    with pytest.raises(BudgetError, match="account of owner 'c' is short") as caught:
        owned.reserve("run-2", plan, every)
    assert caught.value.exit_code == 3
    assert caught.value.details["owner"] == "c"
    assert caught.value.details["block"] == "c"
    assert owned.position() == before
    assert owned.block_status("a").reserved_epsilon == 2.0
    assert owned.release_reservation("run-0")
    owned.reserve("run-2", plan, every)


def test_a_registration_without_the_owners_has_no_accounts(empty_ledger):
    empty_ledger.register_dataset(
        "mail",
        public=False,
        namespaces={"record": fingerprints(0, 50), "owner:team": fingerprints(50, 50)},
        facts={},
    )
    predicate = {**SPLIT, "role": "train"}
    before = empty_ledger.position()
    with pytest.raises(InputError, match="registered without the owners"):
        create(empty_ledger, "a", {**predicate, "owner": CUTS["a"]})
    with pytest.raises(InputError, match="not a cut"):
        create(empty_ledger, "a", {**predicate, "owner": {"name": "a"}})
    cut = CUTS["a"] | {"from": 300}
    with pytest.raises(InputError, match="not a cut"):
        create(empty_ledger, "a", {**predicate, "owner": cut})
    assert empty_ledger.position() == before
    create(empty_ledger, "a", {**predicate, "owner": {"name": "a", "field": "team"}})


@pytest.mark.parametrize("kind", ["owner", "split", "record"])
def test_pairs_of_any_kind_commit_to_the_owner(empty_ledger, kind):
    spaces = {"record": fingerprints(0, 9), f"{kind}:sender": fingerprints(9, 9)}
    empty_ledger.register_dataset("mail", public=False, namespaces=spaces, facts={})
    create(empty_ledger, "a", {**SPLIT, "role": "train", "owner": CUTS["a"]})
