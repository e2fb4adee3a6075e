"""Owners from the file to the report, through the worker's own code."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest

from pft_ray.cluster.inputs import load_inputs
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.specs import owner_rule
from pft_ray.cluster.step_keys import step_keys
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.config import build_job, load_job, read_job
from pft_ray.data import prepare_data
from pft_ray.data.owners import OwnerRule, with_owners
from pft_ray.ledger import dataset_commitment
from pft_ray.mechanisms import SampledGaussian
from tests.contracts.stage import set_stage
from tests.tiny_job import job_dict, make_rows, write_csv, write_job

KEY = bytes(range(32))
MEMBERS = [
    {"name": "a", "size": 60, "epsilon": 2.0},
    {"name": "b", "size": 90, "epsilon": 4.0},
    {"name": "c", "size": 150, "epsilon": 8.0},
]
OWNERS = {
    "privacy__mode": "owners",
    "privacy__epsilon": None,
    "privacy__owners": {"field": "sender", "salt": "o", "members": MEMBERS},
    "cluster__workers": 3,
}
USERS = {
    "data__user": "sender",
    "privacy__unit": "user",
    "privacy__max_records_per_user": 3,
    "privacy__num_train_records": 600,
}


class Source:
    """Gives a worker the key and the commitment, as the coordinator does."""

    def __init__(self, job, folder) -> None:
        prepared = prepare_data(job.data_spec(folder), KEY)
        self._commitment = dataset_commitment(KEY, dict(prepared.fingerprints))

    def data_key(self):
        return KEY

    def dataset_commitment(self, name):
        return self._commitment


def group(folder, world):
    """The plan, and what each rank of a group holds."""
    job = load_job(folder / "job.yaml")
    plan = build_job(job, folder).plan
    source = Source(job, folder)
    return plan, [
        load_inputs(job, folder, source, rank=rank, world=world, plan=plan)
        for rank in range(world)
    ]


def batches(plan, ranks, num_steps=15):
    """The digests in each step, over all ranks."""
    mechanism, steps = SampledGaussian.from_plan(plan), []
    for step in range(num_steps):
        found = set()
        for rank, inputs in enumerate(ranks):
            keys = step_keys(plan, KEY, ("run", 1, step), rank, len(ranks))
            digests, owners = inputs.unit_digests, inputs.unit_owners
            for place in mechanism.sample_owners(keys.part_keys, digests, owners):
                found.add((digests[place].tobytes(), int(owners[place])))
        steps.append(found)
    return steps


@pytest.mark.parametrize("fields", [{}, USERS], ids=["record", "user"])
def test_batches_do_not_depend_on_the_number_of_ranks(tmp_path, fields):
    write_job(tmp_path, rows=400, **(OWNERS | fields))
    plan, ranks = group(tmp_path, 1)
    one = batches(plan, ranks)
    assert min(map(len, one)) > 0
    assert {owner for step in one for _, owner in step} == {0, 1, 2}
    for world in (2, 3, 5):
        plan, ranks = group(tmp_path, world)
        assert batches(plan, ranks) == one
        held = [set(rank.unit_owners.tolist()) for rank in ranks]
        assert world == 2 or all(len(owners) <= 1 for owners in held)
        units = [{d.tobytes() for d in rank.unit_digests} for rank in ranks]
        assert sum(map(len, units)) == len(set().union(*units))


def test_a_rank_gets_sampling_keys_of_its_own_owner_alone(tmp_path):
    write_job(tmp_path, rows=400, **OWNERS)
    plan, _ = group(tmp_path, 3)
    keys = [step_keys(plan, KEY, ("run", 1, 0), rank, 3) for rank in range(3)]
    assert [key.sample_key for key in keys] == [b"", b"", b""]
    assert [[owner for owner, _ in key.part_keys] for key in keys] == [[0], [1], [2]]
    every = [key for k in keys for _, key in k.part_keys]
    every += [key for k in keys for key in k.noise_keys]
    assert len(set(every)) == 6
    assert every[0].hex() not in repr(keys[0])
    again = step_keys(plan, KEY, ("run", 1, 0), 3, 4)
    assert again.part_keys == keys[0].part_keys, "ranks of one owner share its key"
    for position in (("run", 1, 1), ("run", 2, 0), ("other", 1, 0)):
        other = step_keys(plan, KEY, position, 0, 3)
        assert other.part_keys[0][1] != keys[0].part_keys[0][1]


def test_a_unit_removed_moves_no_other_to_another_owner(tmp_path):
    rows = make_rows(200)
    rows[7].update(text=rows[5]["text"], label=rows[5]["label"])  # of another sender
    job = read_job(job_dict(**(OWNERS | {"data__id": None, "data__split": {}})))

    def owned(kept):
        write_csv(tmp_path / "data.csv", kept)
        train = prepare_data(job.data_spec(tmp_path), KEY).train
        found, _ = with_owners(train, owner_rule(job))
        pairs = zip(found.digests, found.owners, strict=True)
        return {(digest.tobytes(), int(owner)) for digest, owner in pairs}

    whole = owned(rows)
    for removed in (5, 7, 20, 199):
        rest = owned(rows[:removed] + rows[removed + 1 :])
        assert rest <= whole
        assert len(whole - rest) <= 1
    assert len({digest for digest, _ in whole}) == len(whole)


def test_a_salted_rule_cuts_by_size_and_a_plain_one_by_name():
    rule = OwnerRule(("a", "b", "c"), (100, 300, 600), "o")
    found = np.bincount([rule.number(f"s{i}") for i in range(6000)], minlength=3)
    for count, share in zip(found, (0.1, 0.3, 0.6), strict=True):
        assert abs(count - 6000 * share) < 6 * np.sqrt(6000 * share * (1 - share))
    other = OwnerRule(("a", "b", "c"), (100, 300, 600), "p")
    assert any(rule.number(f"s{i}") != other.number(f"s{i}") for i in range(50))
    plain = OwnerRule(("a", "b"), (1, 2))
    assert [plain.number(name) for name in ("a", "b", "c")] == [0, 1, None]


def test_a_record_of_no_declared_owner_takes_no_part(tmp_path):
    rows = [row | {"owner": "abcx"[i % 4]} for i, row in enumerate(make_rows(200))]
    named = {"field": "owner", "members": MEMBERS}
    write_csv(tmp_path / "data.csv", rows)
    write_job(tmp_path, **(OWNERS | {"privacy__owners": named}))
    _, ranks = group(tmp_path, 3)
    held = sum(len(rank.unit_digests) for rank in ranks)
    dropped = ranks[0].notes["without_a_declared_owner"]
    assert held + dropped == ranks[0].notes["sizes"]["train"]["found"]
    assert dropped > 20


@pytest.mark.parametrize("method", ["sample", "scale"])
def test_a_run_tells_each_owner_what_its_units_lose(tmp_path, monkeypatch, method):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    owners = OWNERS["privacy__owners"] | {"method": method}
    job = write_job(tmp_path / "job", **(OWNERS | {"privacy__owners": owners}))
    create_budget(job)
    set_stage(monkeypatch)
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    folder = next((tmp_path / "job" / "runs").glob("*/report.json")).parent
    report = json.loads((folder / "report.json").read_text())
    plan = build_job(load_job(job), job.parent).plan
    assert [row["name"] for row in report["owners"]] == ["a", "b", "c"]
    for number, row in enumerate(report["owners"]):
        declared = MEMBERS[number]["epsilon"]
        assert 0.998 * declared < row["epsilon"] <= declared
        assert row["epsilon_against_colluders"] > row["epsilon"]
        assert row["sample_rate"] == plan.owners.members[number].sample_rate
    assert report["epsilon"] == max(row["epsilon"] for row in report["owners"])
    assert "never all that an owner holds" in report["owners_note"]
    page = html.unescape((folder / "report.html").read_text())
    assert "ε against owners" in page
    assert report["owners_note"] in page
