"""The job file: defaults, frozen values, strict keys and types, overrides, schema."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pft_ray.config import JobSpec, job_schema, load_job, read_job
from pft_ray.errors import ConfigError
from tests.tiny_job import job_dict

SMALLEST = {
    "name": "small",
    "data": {
        "path": "d.csv",
        "registration": "small-data",
        "text": "text",
        "label": "label",
        "labels": ["a", "b"],
        "num_train": 1000,
        "num_validation": 200,
    },
    "model": {"path": "model"},
    "privacy": {"epsilon": 3},
    "training": {
        "batch_size": 100,
        "phases": [
            {
                "name": "head",
                "steps": 40,
                "trainable": "head",
                "clip_norm": 1,
                "learning_rate": 0.1,
            }
        ],
    },
}

DEFAULTS = {
    "version": 1,
    "output": "runs",
    "ledger.url": None,
    "data.public": False,
    "data.format": "auto",
    "data.messages": None,
    "data.id": None,
    "data.user": None,
    "data.split.field": None,
    "data.split.salt": "1",
    "data.split.validation_fraction": 0.2,
    "data.max_length": 128,
    "data.deduplicate": "none",
    "model.task": "classification",
    "model.pooling": "mean",
    "model.lora": None,
    "privacy.unit": "record",
    "privacy.noise_multiplier": None,
    "privacy.delta": 1e-5,
    "privacy.fault_reserve": None,
    "privacy.block": None,
    "training.sample_rate": None,
    "training.optimizer": "adamw",
    "training.weight_decay": 0.0,
    "training.seed": 0,
    "training.max_micro_batch": 64,
    "training.checkpoint_interval": None,
    "training.grant_size": None,
    "training.noise_shares": None,
    "training.baseline": False,
    "evaluation.looks": None,
    "evaluation.epsilon": None,
    "evaluation.delta": None,
    "evaluation.spare_looks": 1,
    "evaluation.num_bins": 20,
    "evaluation.loss_bound": 10.0,
    "evaluation.block": None,
    "cluster.workers": 1,
    "cluster.cpus_per_worker": 1.0,
    "cluster.address": None,
    "cluster.max_failures": 3,
    "cluster.placement_timeout_s": 60.0,
}


def value_at(job, path):
    for part in path.split("."):
        job = getattr(job, part)
    return job


@pytest.mark.parametrize("path", DEFAULTS)
def test_defaults(path):
    assert value_at(read_job(SMALLEST), path) == DEFAULTS[path]


def test_blocks_are_named_after_the_registration():
    job = read_job(SMALLEST)
    assert job.training_block == "small-data/train"
    assert job.validation_block == "small-data/validation"
    assert job.num_steps == 40
    named = copy.deepcopy(SMALLEST)
    named["privacy"]["block"] = "x/train"
    named["evaluation"] = {"block": "x/looks"}
    job = read_job(named)
    assert (job.training_block, job.validation_block) == ("x/train", "x/looks")


def test_a_job_is_frozen_all_the_way_down():
    job = read_job(job_dict())
    for owner, name in [
        (job, "name"),
        (job.privacy, "epsilon"),
        (job.data.split, "salt"),
        (job.model.lora, "rank"),
        (job.training.phases[0], "clip_norm"),
    ]:
        with pytest.raises(ValidationError):
            setattr(owner, name, getattr(owner, name))
    assert isinstance(job.training.phases, tuple)
    assert hash(job.data.labels)


def sections(model=JobSpec, place=()):
    """Every section of a job with its place, a list entry written as 0."""
    yield place, model
    for name, field in model.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                many = name in ("phases", "members")
                inner = (*place, name, 0) if many else (*place, name)
                yield from sections(part, inner)


SECTIONS = dict(sections())


def test_every_section_is_found():
    names = {".".join(str(part) for part in place) for place in SECTIONS}
    assert names == {
        *("", "data", "data.split", "data.split.window", "model", "model.lora"),
        "privacy",
        *("training", "training.phases.0", "training.phases.0.quantile"),
        *("privacy.owners", "privacy.owners.members.0", "privacy.filter"),
        *("evaluation", "cluster", "cluster.elastic", "cluster.faults", "ledger"),
    }


def with_key(place, key):
    """The tiny job with one key more in a section."""
    job = job_dict(ledger={"url": "x.db"})
    job["training"]["phases"][0] |= {"clipping": "adaptive", "quantile": {}}
    if "filter" in place:
        job["privacy"] |= {"accounting": "filter", "filter": {}}
    if "owners" in place:
        job["privacy"] = {"mode": "owners", "owners": {"field": "sender"}}
        members = [{"name": n, "size": 150, "epsilon": 2.0} for n in "ab"]
        job["privacy"]["owners"]["members"] = members
    if "elastic" in place:
        job["cluster"]["elastic"] = {"max_workers": 2}
    if "faults" in place:
        job["cluster"]["faults"] = {"failures_per_node_hour": 0.1, "step_s": 1.0}
    if "window" in place:
        window = {"field": "day", "since": 0, "until": 9}
        job["data"]["split"] = {**job["data"].get("split", {}), "window": window}
    target = job
    for part in place:
        target = target[part]
    target[key] = 1
    return job


@pytest.mark.parametrize("place", SECTIONS, ids=str)
def test_an_unknown_key_is_refused_in_every_section(place):
    with pytest.raises(ConfigError) as caught:
        read_job(with_key(place, "qqqq"))
    path = ".".join(str(part) for part in (*place, "qqqq"))
    assert f"unknown key {path}" in caught.value.message
    for name in SECTIONS[place].model_fields:
        assert name in caught.value.fix


KEYS = [
    (place, name)
    for place, model in SECTIONS.items()
    for name in model.model_fields
    if len(name) > 4
]


@pytest.mark.parametrize(("place", "name"), KEYS, ids=str)
def test_a_misspelt_key_is_recognised(place, name):
    with pytest.raises(ConfigError) as caught:
        read_job(with_key(place, name[:2] + name[3:]))
    assert f"Did you mean {name!r}?" in caught.value.fix


def test_sections_stay_small_and_explained():
    for place, model in SECTIONS.items():
        assert len(model.model_fields) <= 15, place
        for name, field in model.model_fields.items():
            inner = any(
                isinstance(part, type) and issubclass(part, BaseModel)
                for part in (
                    field.annotation,
                    *getattr(field.annotation, "__args__", ()),
                )
            )
            assert field.description or inner, (place, name)


def test_the_schema_says_what_the_reader_says():
    schema = job_schema()
    parts = [schema, *schema["$defs"].values()]
    assert len(parts) == len(SECTIONS)
    for part in parts:
        assert part["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "data", "model", "privacy", "training"}
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    privacy = schema["$defs"]["PrivacySection"]["properties"]
    assert privacy["unit"]["enum"] == ["record", "user"]
    assert privacy["delta"]["exclusiveMaximum"] == 1


NUMBERS = {
    "1e-5": 1e-5,
    "1E-5": 1e-5,
    "1.0e-5": 1e-5,
    "1.e-5": 1e-5,
    ".1e-4": 1e-5,
    "+1e-5": 1e-5,
    "10e-6": 1e-5,
    "0.00001": 1e-5,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_in_the_usual_spellings_are_numbers(tmp_path, text):
    words = yaml.safe_dump(SMALLEST)
    path = tmp_path / "job.yaml"
    path.write_text(words.replace("epsilon: 3", f"epsilon: 3\n  delta: {text}"))
    assert load_job(path).privacy.delta == NUMBERS[text]
    assert load_job(path, [f"privacy.delta={text}"]).privacy.delta == NUMBERS[text]


@pytest.mark.parametrize("text", ['"1e-5"', "1e", "e-5", "1e-5x", "'.1'"])
def test_what_is_no_number_stays_text(tmp_path, text):
    words = yaml.safe_dump(SMALLEST)
    path = tmp_path / "job.yaml"
    path.write_text(words.replace("epsilon: 3", f"epsilon: 3\n  delta: {text}"))
    with pytest.raises(ConfigError, match=r"privacy\.delta is '.*', not a number"):
        load_job(path)


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-300, 1e6), st.integers(1, 2**40))
def test_numbers_survive_yaml(epsilon, num_train):
    job = copy.deepcopy(SMALLEST)
    job["privacy"] = {"epsilon": epsilon, "delta": 1e-13}
    job["data"]["num_train"] = num_train
    job["training"]["batch_size"] = 1
    read = read_job(yaml.safe_load(yaml.safe_dump(job)))
    assert read.privacy.epsilon == epsilon
    assert read.data.num_train == num_train


def test_overrides_replace_values_and_leave_their_source_alone():
    source = job_dict()
    before = copy.deepcopy(source)
    job = read_job(
        source,
        overrides=[
            "privacy.epsilon=4",
            "privacy.delta=1e-6",
            "training.phases.1.clip_norm=0.25",
            "data.labels=[a, b, c]",
            "cluster.address=10.0.0.1:6379",
            "evaluation=null",
            "ledger.url=x=y.db",
            "name=first",
            "name=last",
        ],
    )
    assert source == before
    assert (job.privacy.epsilon, job.privacy.delta) == (4, 1e-6)
    assert [phase.clip_norm for phase in job.training.phases] == [1.0, 0.25]
    assert job.data.labels == ("a", "b", "c")
    assert job.cluster.address == "10.0.0.1:6379"
    assert job.evaluation is None
    assert job.ledger.url == "x=y.db"
    assert job.name == "last"


def test_an_override_makes_a_section_that_is_not_there():
    job = read_job(SMALLEST, overrides=["cluster.workers=3", "ledger={url: a.db}"])
    assert (job.cluster.workers, job.ledger.url) == (3, "a.db")


def test_a_job_read_back_from_its_own_json_is_the_same():
    job = read_job(job_dict())
    assert read_job(job.model_dump(mode="json")) == job


def test_problems_name_the_source():
    with pytest.raises(ConfigError, match=r"^my\.yaml: privacy is missing\."):
        read_job(
            {k: v for k, v in SMALLEST.items() if k != "privacy"}, source="my.yaml"
        )
