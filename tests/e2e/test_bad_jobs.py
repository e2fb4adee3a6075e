"""Job files that are wrong: each is refused with words, and nothing is written."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.refusals import pft
from tests.tiny_job import job_dict

NAN, INF, SUBNORMAL = float("nan"), float("inf"), 5e-324
HEAD = {
    "name": "head",
    "steps": 8,
    "trainable": "head",
    "clip_norm": 1.0,
    "learning_rate": 0.05,
}
LORA = HEAD | {"name": "lora", "trainable": "adapter+head"}


def phases(**changes):
    """Two phases, the first one changed."""
    return {"training__phases": [HEAD | changes, LORA]}


# Changes of the tiny job, what the message must say, what the fix must say.
CASES = {
    "unknown-section": ({"trainning": {}}, "key trainning", "mean 'training'"),
    "unknown-key": (
        {"training__batchsize": 8},
        r"key training\.batchsize",
        "mean 'batch_size'",
    ),
    "unknown-key-deep": (
        {"model__lora__ranks": 8},
        r"key model\.lora\.ranks",
        "mean 'rank'",
    ),
    "unknown-key-in-phase": (
        phases(clipnorm=1.0),
        r"key training\.phases\.0\.clipnorm",
        "mean 'clip_norm'",
    ),
    "unknown-key-far-off": ({"privacy__zzz": 1}, r"privacy\.zzz", "known there: unit"),
    "missing-section": ({"privacy": None}, "privacy is missing", "Add privacy"),
    "missing-key": ({"data__num_train": None}, r"data\.num_train is missing", "Add"),
    "section-is-text": ({"data": "mail"}, "'mail', not a section", "as a section"),
    "list-is-section": ({"training__phases": {"a": 1}}, "not a list", "as a list"),
    "text-is-number": ({"data__registration": 7}, "is 7, not text", "quotes"),
    "text-is-bool": ({"data__labels": [False, True]}, "is false, not text", "quotes"),
    "number-is-bool": ({"privacy__epsilon": True}, "is true, not a number", "number"),
    "count-is-bool": ({"training__batch_size": True}, "is true", "whole number"),
    "number-is-quoted": ({"privacy__epsilon": "3"}, "is '3'", "without quotes"),
    "count-is-fraction": ({"training__batch_size": 60.5}, "60.5", "whole number"),
    "bool-is-text": ({"data__public": "yes"}, "is 'yes'", "true or false"),
    "bool-is-number": ({"data__public": 1}, "is 1", "true or false"),
    "version": ({"version": 2}, "version is 2", "Give 1"),
    "name": ({"name": "my job"}, "name is 'my job'", "letters, digits"),
    "registration": ({"data__registration": "../x"}, "'../x'", "letters, digits"),
    "epsilon-zero": ({"privacy__epsilon": 0}, r"privacy\.epsilon is 0", "above 0"),
    "epsilon-negative": ({"privacy__epsilon": -1.0}, "is -1.0", "above 0"),
    "epsilon-nan": ({"privacy__epsilon": NAN}, "is nan", "finite"),
    "epsilon-inf": ({"privacy__epsilon": INF}, "is inf", "finite|at most"),
    "epsilon-subnormal": ({"privacy__epsilon": SUBNORMAL}, "5e-324", "count as 0"),
    "epsilon-huge": ({"privacy__epsilon": 1e300}, r"1e\+300", "at most"),
    "epsilon-out-of-reach": (
        {"privacy__epsilon": 1e-12},
        "No noise below",
        "Raise epsilon",
    ),
    "sigma-zero": (
        {"privacy__epsilon": None, "privacy__noise_multiplier": 0.0},
        r"noise_multiplier is 0\.0",
        "at least 0.01",
    ),
    "sigma-hides-nothing": (
        {"privacy__epsilon": None, "privacy__noise_multiplier": 1e-9},
        "1e-09",
        "at least 0.01",
    ),
    "sigma-huge": (
        {"privacy__epsilon": None, "privacy__noise_multiplier": 1e300},
        r"1e\+300",
        "at most",
    ),
    "epsilon-and-sigma": (
        {"privacy__noise_multiplier": 1.0},
        "both of epsilon and noise_multiplier",
        "exactly one",
    ),
    "no-epsilon-no-sigma": (
        {"privacy__epsilon": None},
        "neither of epsilon and noise_multiplier",
        "exactly one",
    ),
    "delta-zero": ({"privacy__delta": 0.0}, r"privacy\.delta is 0\.0", "above 0"),
    "delta-one": ({"privacy__delta": 1.0}, r"is 1\.0", "below 1"),
    "delta-negative": ({"privacy__delta": -1e-5}, "-1e-05", "above 0"),
    "delta-above-1/n": ({"privacy__delta": 0.01}, "not below 1/", "below 0.00333"),
    "evaluation-delta": (
        {"evaluation__delta": 0.01},
        "not below 1/data.num_validation",
        "below 0.01",
    ),
    "unit-user": ({"privacy__unit": "user"}, "data.user names no column", "Name"),
    "unit-owner": ({"privacy__unit": "owner"}, "cannot hide all records", "user"),
    "unit-unknown": ({"privacy__unit": "mail"}, "is 'mail'", "Give record"),
    "batch-and-rate": ({"training__sample_rate": 0.2}, "both of batch_size", "one"),
    "no-batch-no-rate": ({"training__batch_size": None}, "neither of batch", "one"),
    "batch-above-n": ({"training__batch_size": 301}, "301 is larger", "Lower"),
    "batch-zero": ({"training__batch_size": 0}, "batch_size is 0", "at least 1"),
    "rate-zero": (
        {"training__batch_size": None, "training__sample_rate": 0.0},
        r"sample_rate is 0\.0",
        "above 0",
    ),
    "rate-above-one": (
        {"training__batch_size": None, "training__sample_rate": 1.01},
        r"sample_rate is 1\.01",
        "at most 1",
    ),
    "rate-nan": (
        {"training__batch_size": None, "training__sample_rate": NAN},
        "sample_rate is nan",
        "finite",
    ),
    "one-class": ({"data__labels": ["no"]}, "labels has 1 entry", "2 or more"),
    "class-twice": ({"data__labels": ["no", "no"]}, "'no', 'no'", "different"),
    "class-empty": ({"data__labels": ["no", ""]}, r"labels\.1 is empty", "value"),
    "label-without-labels": ({"data__labels": None}, "belong together", "or neither"),
    "labels-without-label": ({"data__label": None}, "belong together", "or neither"),
    "labels-for-lm": (
        {"model__task": "causal_lm"},
        "no sense with model.task causal_lm",
        "Remove data.label",
    ),
    "no-labels-for-classes": (
        {"data__label": None, "data__labels": None},
        "data.labels is missing",
        "Give data.label",
    ),
    "text-and-messages": ({"data__messages": "m"}, "Exactly one of text", "Give"),
    "no-text-no-messages": ({"data__text": None}, "Exactly one of text", "Give"),
    "id-is-text": ({"data__id": "text"}, "both the content and the id", "another"),
    "id-is-label": ({"data__id": "label"}, "both the label and an id", "another"),
    "fraction-one": (
        {"data__split__validation_fraction": 1.0},
        r"validation_fraction is 1\.0",
        "below 1",
    ),
    "max-length-one": ({"data__max_length": 1}, "max_length is 1", "at least 2"),
    "n-zero": ({"data__num_train": 0}, "num_train is 0", "at least 1"),
    "no-phase": ({"training__phases": []}, "phases has no entries", "1 or more"),
    "phase-twice": (phases(name="lora"), "two phases of one name", "of its own"),
    "steps-zero": (phases(steps=0), r"phases\.0\.steps is 0", "at least 1"),
    "clip-zero": (phases(clip_norm=0.0), "clip_norm is 0", "above 0"),
    "clip-negative": (phases(clip_norm=-1.0), "clip_norm is -1", "above 0"),
    "rate-negative": (phases(learning_rate=-0.1), "learning_rate is -0.1", "above 0"),
    "learning-nan": (phases(learning_rate=NAN), "learning_rate is nan", "finite"),
    "warmup-too-long": (phases(warmup_steps=9), "warmup_steps .* is 9", "no longer"),
    "head-rate-unused": (
        phases(trainable="adapter", head_learning_rate=0.1),
        "trains no head",
        "Remove head_learning_rate",
    ),
    "trainable-unknown": (phases(trainable="heads"), "is 'heads'", "mean 'head'"),
    "adapter-without-lora": ({"model__lora": None}, "lora is missing", "Add model"),
    "lora-unused": (
        {"training__phases": [HEAD]},
        "no phase trains the adapter",
        "Remove model.lora",
    ),
    "head-for-lm": (
        {
            "model__task": "causal_lm",
            "data__label": None,
            "data__labels": None,
            "training__phases": [LORA],
        },
        "causal_lm has none",
        "trainable: adapter",
    ),
    "all-and-head": (phases(trainable="all"), "mixes 'all'", "in every phase"),
    "no-targets": ({"model__lora__targets": []}, "targets has no", "1 or more"),
    "optimizer": ({"training__optimizer": "adam"}, "is 'adam'", "mean 'adamw'"),
    "baseline-private": (
        {"training__baseline": True},
        "trains without privacy",
        "Remove training.baseline",
    ),
    "looks-beyond": ({"evaluation__looks": [8, 17]}, "names step 17", "at most 16"),
    "looks-unordered": ({"evaluation__looks": [8, 4]}, r"\[8, 4\]", "rising"),
    "looks-twice": ({"evaluation__looks": [8, 8]}, r"\[8, 8\]", "rising"),
    "looks-empty": ({"evaluation__looks": []}, "looks has no entries", "1 or more"),
    "n-validation": (
        {"data__num_validation": None},
        "needs data.num_validation",
        "evaluation: null",
    ),
    "bins-odd": ({"evaluation__num_bins": 21}, "num_bins is 21", "multiple of 2"),
    "workers-zero": ({"cluster__workers": 0}, "workers is 0", "at least 1"),
    "workers-above-n": ({"cluster__workers": 301}, "301 is more than", "Lower"),
    "shares-below-workers": (
        {"cluster__workers": 2, "training__noise_shares": 1},
        "sums without noise",
        "one share a worker",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_job_is_refused(bench, case):
    changes, says, fix = case
    error = bench.refused("train", bench.new_job(**changes), says=says, fix=fix)
    assert error["code"] in ("bad-config", "bad-plan")


def test_the_job_that_is_not_changed_is_accepted(bench):
    before = bench.position()
    answer = pft("train", bench.job, "--dry-run", "--json")
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["num_steps_planned"] == 16
    assert bench.position() == before


def test_several_faults_are_told_at_once(bench):
    job = bench.new_job(privacy__epsilon="3", training__batch_size=0, nme="x")
    error = bench.refused("plan", job, says="nme.*epsilon.*batch_size")
    assert len(error["details"]["problems"]) == 3


FILES = {
    "empty": ("", "is empty", "quickstart"),
    "only-comment": ("# nothing\n", "is empty", "quickstart"),
    "list": ("- a\n- b\n", "holds a list", "Start from"),
    "text": ("just words\n", "holds text", "Start from"),
    "not-yaml": ("data: [1, 2\n", "not valid YAML on line", "that line"),
    "tab": ("data:\n\tpath: x\n", "not valid YAML on line 2", "that line"),
    "key-twice": ("name: a\nname: b\n", "'name' is given twice", "that line"),
    "merge-key": ("a: &a {x: 1}\nb: {<<: *a}\n", "merge keys", "that line"),
    "python-tag": ("a: !!python/name:os.system\n", "not valid YAML", "that line"),
    "two-documents": ("--- {}\n--- {}\n", "another document", "that line"),
    "date": ("name: 2024-01-02\n", "name is read as a date", "quotes"),
    "no-such-date": ("name: 2024-13-02\n", "month", "quotes"),
    "refers-to-itself": ("a: &a [*a]\n", "recursive", "that line"),
    "too-deep": ("[" * 5000, "too deep", "quotes"),
    "not-utf8": (b"name: \xff\xfe\n", "not UTF-8", "Save it"),
    "control-character": ("name: \x01\n", "not valid YAML", "that line"),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_job_file_is_refused(bench, case):
    content, says, fix = case
    bench.refused("plan", bench.new_file("job.yaml", content), says=says, fix=fix)


@pytest.mark.parametrize("verb", [["plan"], ["train"], ["budget", "create"]])
def test_every_verb_refuses_a_missing_job_file_and_a_folder(bench, verb):
    bench.refused(*verb, "nowhere.yaml", says="no job file", fix="Check the path")
    bench.refused(*verb, bench.folder, says="is a folder", fix="YAML file")


SETS = {
    "no-value": ("privacy.epsilon", "not of the form", "key=value"),
    "no-key": ("=3", "not of the form", "key=value"),
    "no-section": ("privacy.epsilon.x=3", "epsilon is not a section", "Check"),
    "unknown": ("privacy.epsilonn=3", "key privacy.epsilonn", "mean 'epsilon'"),
    "bad-value": ("privacy.epsilon=three", "is 'three'", "number"),
    "not-yaml": ("privacy.epsilon=[", "--set privacy.epsilon is not valid", "line"),
    "replace-one": ("privacy.relation=replace_one", "replace-one", "Leave privacy"),
    "no-such-phase": ("training.phases.2.steps=5", "'2' is no place", "from 0 to 1"),
}


@pytest.mark.parametrize("case", SETS.values(), ids=SETS)
def test_override_is_refused(bench, case):
    item, says, fix = case
    bench.refused("plan", bench.job, "--set", item, says=says, fix=fix)


def test_plain_words_say_the_same_as_json(bench):
    job = bench.folder / bench.new_file(
        "job.yaml", yaml.safe_dump(job_dict(training__batchsize=3))
    )
    answer = pft("plan", job)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert "unknown key training.batchsize" in answer.err
    assert "Did you mean 'batch_size'?" in answer.err
