"""The unit is the user: from the file to the report, through the worker's own code."""

from __future__ import annotations

import json

import pytest

from pft_ray.cluster.inputs import capped_blocks, load_inputs
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.config import build_job, load_job, read_job
from pft_ray.crypto import derive_key
from pft_ray.data import prepare_data
from pft_ray.errors import ConfigError
from pft_ray.ledger import Ledger, dataset_commitment
from pft_ray.mechanisms import SampledGaussian
from tests.contracts.stage import set_stage
from tests.tiny_job import job_dict, make_rows, write_csv, write_job

KEY = bytes(range(32))
USERS = {
    "data__user": "sender",
    "data__num_train": 73,
    "data__num_validation": 24,
    "training__batch_size": 20,
    "privacy__unit": "user",
    "privacy__max_records_per_user": 3,
    "privacy__num_train_records": 200,
}


class Source:
    """Gives a worker the key and the commitment, as the coordinator does."""

    def __init__(self, job, folder) -> None:
        prepared = prepare_data(job.data.spec(folder), KEY)
        self._commitment = dataset_commitment(KEY, dict(prepared.fingerprints))

    def data_key(self):
        return KEY

    def dataset_commitment(self, name):
        return self._commitment


def inputs_of(folder, world):
    job = load_job(folder / "job.yaml")
    built = build_job(job, folder)
    source = Source(job, folder)
    return built.plan, [
        load_inputs(job, folder, source, rank=rank, world=world, plan=built.plan)
        for rank in range(world)
    ]


def batches(folder, world):
    """Record digests of every step's batch, over all ranks; and users' ranks."""
    plan, ranks = inputs_of(folder, world)
    mechanism = SampledGaussian.from_plan(plan)
    steps = []
    for step in range(20):
        key = derive_key(KEY, "sample", step)
        drawn = set()
        for rank in ranks:
            for user in mechanism.sample(key, rank.unit_digests):
                rows = rank.groups.rows(int(user))
                assert 1 <= len(rows) <= 3
                own = {rank.train.users[row].tobytes() for row in rows}
                assert own == {rank.groups.digests[user].tobytes()}
                drawn |= {rank.train.digests[row].tobytes() for row in rows}
        steps.append(drawn)
    owners = [{u.tobytes() for u in rank.groups.digests} for rank in ranks]
    return steps, owners


def test_batches_of_users_do_not_depend_on_the_number_of_ranks(tmp_path):
    write_job(tmp_path, rows=200, **USERS)
    one, (everyone,) = batches(tmp_path, 1)
    assert min(map(len, one)) < max(map(len, one))
    for world in (2, 3):
        found, owners = batches(tmp_path, world)
        assert found == one
        assert set().union(*owners) == everyone
        assert sum(map(len, owners)) == len(everyone), "a user lies on one rank"


@pytest.mark.parametrize("fields", [{}, {"data__id": None}], ids=["id", "content"])
def test_a_user_removed_changes_no_other(tmp_path, fields):
    rows = make_rows(300)
    rows[5]["text"] = rows[102]["text"] = "word1 word2"  # s5: a copy of another's
    job = read_job(job_dict(**(USERS | fields)))

    def blocks(kept):
        write_csv(tmp_path / "data.csv", kept)
        prepared = prepare_data(job.data.spec(tmp_path), KEY)
        return [
            {
                (records.digests[i].tobytes(), records.users[i].tobytes())
                for i in range(len(records))
            }
            for records in capped_blocks(prepared, job)
        ]

    whole = blocks(rows)
    for sender in ("s5", "s7", "s50"):
        rest = blocks([row for row in rows if row["sender"] != sender])
        gone = [before - after for before, after in zip(whole, rest, strict=True)]
        assert all(after <= before for before, after in zip(whole, rest, strict=True))
        assert len({user for part in gone for _, user in part}) == 1
        assert (len(gone[0]), len(gone[1])) in {(3, 0), (0, 1)}


@pytest.mark.parametrize("level", ["uls", "els"])
def test_a_run_says_that_its_unit_is_the_user(tmp_path, monkeypatch, level):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    fields = USERS | {"privacy__user_level": level, "cluster__workers": 2}
    if level == "els":  # sigma is given, so that nothing is searched for
        fields |= {"privacy__epsilon": None, "privacy__noise_multiplier": 3.0}
        fields |= {"evaluation": None}
    job = write_job(tmp_path / "job", rows=300, **fields)
    create_budget(job)
    set_stage(monkeypatch)
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    folder = next((tmp_path / "job" / "runs").glob("*/report.json")).parent
    report = json.loads((folder / "report.json").read_text())
    assert report["unit"] == "user"
    assert report["user_column"] == "sender"
    assert report["user"] == {
        "kind": level,
        "max_records_per_user": 3,
        "num_records": 200,
        "contribution": "mean",
    }
    assert "user (by `sender`)" in report["guarantee"]
    page = (folder / "report.html").read_text()
    assert "user (by `sender`), add or remove one" in page
    ledger = Ledger.open(
        str(tmp_path / "home" / "ledger.db"),
        keys_dir=tmp_path / "home" / "keys",
        create=False,
    )
    assert {block.unit for block in ledger.blocks()} == {"user"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data__user": None}, "names no column"),
        ({"privacy__max_records_per_user": None}, "max_records_per_user is missing"),
        ({"privacy__num_train_records": None}, "num_train_records is missing"),
        ({"privacy__num_train_records": 72}, "is 72 for 73 users"),
        ({"privacy__num_train_records": 220}, "is 220 for 73 users"),
        ({"training__max_micro_batch": 2}, "more than training.max_micro_batch 2"),
        ({"data__split": {"field": "id"}}, "both blocks"),
        ({"data__deduplicate": "exact"}, "could change many"),
        ({"privacy__unit": "record"}, "privacy.unit is record"),
        (
            {"privacy__user_level": "els", "privacy__user_contribution": "sum"},
            "els, which clips every record",
        ),
        (
            {
                "privacy__user_level": "auto",
                "privacy__epsilon": None,
                "privacy__noise_multiplier": 1.0,
            },
            "epsilon is missing",
        ),
    ],
)
def test_jobs_that_are_refused(change, says):
    read_job(job_dict(**USERS))
    with pytest.raises(ConfigError, match=says):
        read_job(job_dict(**(USERS | change)))


@pytest.mark.parametrize("cap", [0, -1, 1001, 1.5])
def test_caps_that_are_refused(cap):
    with pytest.raises(ConfigError):
        read_job(job_dict(**(USERS | {"privacy__max_records_per_user": cap})))
