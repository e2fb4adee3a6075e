"""One record less: every other unit keeps its block, name, rank, batches and tokens.

From the file to the sampler, through the code that a worker runs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from pft_ray.cluster.inputs import load_inputs, shard_of
from pft_ray.cluster.specs import model_spec, split_predicate
from pft_ray.config import build_job, load_job, read_job
from pft_ray.crypto import derive_key
from pft_ray.data import prepare_data
from pft_ray.errors import DataError
from pft_ray.ledger import dataset_commitment
from pft_ray.mechanisms import SampledGaussian
from pft_ray.training.models import load_model
from tests.tiny_job import job_dict, make_model, make_rows, write_csv, write_job

KEY = bytes(range(32))
NUM_STEPS = 200
LABELS = ["no", "yes", "rare"]

VARIANTS = {
    "with an id": {},
    "without an id": {"data__id": None},
    "split by a field": {"data__split__field": "sender"},
    "split by a user": {"data__user": "sender", "data__id": None},
}


def rows_of(num_rows: int = 60) -> list[dict]:
    """Rows with equal records, a class of one record, a long one and a faulty one."""
    rows = make_rows(num_rows)
    for row in rows[10:14]:  # equal in everything but the id
        row.update({key: rows[10][key] for key in ("text", "label", "sender")})
    rows[20].update(text=rows[10]["text"], label=rows[10]["label"])
    rows[30]["label"] = "rare"
    rows[31]["text"] = " ".join(["word7"] * 50)
    rows[32]["text"] = ""
    return rows


# An ordinary one, equals, the only one of its class, the longest, the faulty one.
REMOVED = [0, 10, 12, 20, 30, 31, 32, 59]


class Source:
    """Gives a worker the key and the commitment, as the coordinator does."""

    def __init__(self, job, folder) -> None:
        prepared = prepare_data(job.data.spec(folder), KEY)
        self._commitment = dataset_commitment(KEY, dict(prepared.fingerprints))

    def data_key(self):
        return KEY

    def dataset_commitment(self, name):
        return self._commitment


@dataclass
class Seen:
    """What a whole group of workers makes of a file.

    Attributes:
        units: Digest to (block, tokens, length, class).
        ranks: Digest to the rank that owns it, for each number of workers.
        drawn: The digests in each step, over all ranks, for each number of workers.
        plan_digest: Of the job.
        head: Shape of the classifier's head.
    """

    units: dict[bytes, tuple]
    ranks: dict[int, dict[bytes, int]]
    drawn: dict[int, list[set[bytes]]]
    plan_digest: str
    head: tuple[int, ...]


def look_at(folder, rows, **changes) -> Seen:
    """Runs what workers run, for groups of one, two and three."""
    write_csv(folder / "data.csv", rows)
    changes = {
        "data__labels": LABELS,
        "data__num_train": 45,
        "data__num_validation": 15,
        "training__batch_size": 15,
    } | changes
    job = load_job(write_job(folder, **changes))
    built = build_job(job, folder)
    mechanism = SampledGaussian.from_plan(built.plan)
    source = Source(job, folder)
    units: dict[bytes, tuple] = {}
    ranks: dict[int, dict[bytes, int]] = {}
    drawn: dict[int, list[set[bytes]]] = {}
    for world in (1, 2, 3):
        ranks[world] = {}
        drawn[world] = [set() for _ in range(NUM_STEPS)]
        for rank in range(world):
            inputs = load_inputs(job, folder, source, rank=rank, world=world)
            table = inputs.train
            names = [row.tobytes() for row in table.digests]
            for name in names:
                assert name not in ranks[world], "a unit lies on one rank"
                ranks[world][name] = rank
            for step in range(NUM_STEPS):
                key = derive_key(KEY, "sample", "r", 1, step)
                places = mechanism.sample(key, table.digests)
                drawn[world][step] |= {names[place] for place in places}
            units |= members(table, "train")
            if inputs.validation is not None:
                units |= members(inputs.validation, "validation")
    model = load_model(model_spec(job, folder))
    return Seen(
        units, ranks, drawn, built.plan.digest, tuple(model.module.head.weight.shape)
    )


def members(table, block: str) -> dict[bytes, tuple]:
    return {
        table.digests[place].tobytes(): (
            block,
            table.input_ids[place].tobytes(),
            int(table.lengths[place]),
            int(table.targets[place]),
        )
        for place in range(len(table))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    make_model(folder / "model")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_record_less_changes_that_unit_alone(folder, variant):
    rows = rows_of()
    whole = look_at(folder, rows, **VARIANTS[variant])
    assert {block for block, *_ in whole.units.values()} == {"train", "validation"}
    assert len(whole.units) == len(rows) - 1, "the faulty record takes no part"
    assert all(any(steps) for steps in whole.drawn.values())
    for removed in REMOVED:
        rest = look_at(
            folder, rows[:removed] + rows[removed + 1 :], **VARIANTS[variant]
        )
        gone = whole.units.keys() - rest.units.keys()
        assert len(gone) == (0 if rows[removed]["text"] == "" else 1)
        assert rest.units.items() <= whole.units.items(), "block, tokens, class"
        for world in (1, 2, 3):
            assert rest.ranks[world].items() <= whole.ranks[world].items()
            for before, after in zip(
                whole.drawn[world], rest.drawn[world], strict=True
            ):
                assert after == before - gone, "no other unit's bit moves"
        assert rest.plan_digest == whole.plan_digest
        assert rest.head == whole.head == (len(LABELS), 32)


def test_every_number_of_workers_draws_the_same_batches(folder):
    whole = look_at(folder, rows_of())
    assert whole.drawn[1] == whole.drawn[2] == whole.drawn[3]
    sizes = [len(step) for step in whole.drawn[1]]
    assert min(sizes) < max(sizes), "batches are drawn, not cut"
    assert [len(set(whole.ranks[w].values())) for w in (1, 2, 3)] == [1, 2, 3]


def test_the_owner_of_a_unit_is_a_function_of_its_own_digest():
    digests = np.random.default_rng(5).integers(0, 256, (500, 16), dtype=np.uint8)
    for world in (1, 2, 3, 8):
        owner = np.full(500, -1)
        for rank in range(world):
            owner[shard_of(digests, rank, world)] = rank
        assert (owner >= 0).all()
        for order in (slice(None, None, -1), slice(3, None, 2)):
            part = digests[order]
            found = np.full(len(part), -1)
            for rank in range(world):
                found[shard_of(part, rank, world)] = rank
            assert np.array_equal(found, owner[order])


# -- blocks: the ledger takes two equal predicates for one and the same cut ------------

SPLITS = {
    "text": {},
    "id": {"data__id": "id"},
    "sender": {"data__split__field": "sender"},
    "user": {"data__user": "sender"},
    "content": {"data__split__field": "content"},
    "salt": {"data__split__salt": "2"},
    "fraction": {"data__split__validation_fraction": 0.5},
}


@pytest.mark.parametrize(("one", "other"), itertools.combinations(SPLITS, 2))
def test_equal_predicates_cut_alike(tmp_path, one, other):
    """Blocks with equal predicates and other roles are taken to be disjoint.

    If two jobs could cut differently under one predicate, a unit would be in the
    training block of one and in the validation block of the other, and be charged as
    if it were in one of them. The text's column is named "content" on purpose.
    """
    rows = [
        {**{k: v for k, v in row.items() if k != "text"}, "content": row["text"]}
        for row in make_rows(80)
    ]
    write_csv(tmp_path / "data.csv", rows)
    jobs, blocks = [], []
    for name in (one, other):
        changes = {"data__id": None, "data__text": "content"} | SPLITS[name]
        job = read_job(job_dict(**changes))
        prepared = prepare_data(job.data.spec(tmp_path), KEY)
        jobs.append(job)
        blocks.append(set(prepared.train.contents))
    if split_predicate(jobs[0], "train") == split_predicate(jobs[1], "train"):
        assert blocks[0] == blocks[1]
    else:
        assert (one, other) != ("sender", "user"), "the same cut has one predicate"


@pytest.mark.parametrize("fields", [{}, {"data__id": None}], ids=["id", "content"])
def test_a_file_whose_records_change_blocks_is_other_data(folder, fields):
    """Else a unit would be in the training block of one run and, charged apart, in
    the validation block of the next: two blocks that count as disjoint."""
    changes = {"data__split__field": "sender", "data__num_train": 60} | fields
    job = read_job(job_dict(**changes))
    rows = make_rows(80)
    moved = [dict(row) for row in rows]
    moved[7]["sender"] = "somebody else"
    swapped = [dict(row) for row in rows]  # the same senders, at other records
    swapped[3]["sender"], swapped[4]["sender"] = rows[4]["sender"], rows[3]["sender"]
    seen = []
    for version in (rows, rows[::-1], moved, swapped):
        write_csv(folder / "data.csv", version)
        prepared = prepare_data(job.data.spec(folder), KEY)
        seen.append(dataset_commitment(KEY, dict(prepared.fingerprints)))
    assert seen[0] == seen[1], "the order of the file does not matter"
    assert len({seen[0], seen[2], seen[3]}) == 3
    write_csv(folder / "data.csv", moved)
    source = Source(job, folder)
    write_csv(folder / "data.csv", rows)
    with pytest.raises(DataError, match="not those registered"):
        load_inputs(job, folder, source, rank=0, world=1)
