"""What the engine cannot train on: refused by name, before a run is reserved."""

from __future__ import annotations

import json
import shutil

import pytest
from torch import nn

from tests.e2e.refusals import Bench, pft
from tests.tiny_chat import CHANGES, PHASE, make_chats, make_llama, write_chat_job
from tests.tiny_job import job_dict

ALL = [job_dict()["training"]["phases"][1] | {"trainable": "all"}]


@pytest.fixture(scope="module")
def chat_bench(tmp_path_factory):
    """A bench whose job teaches a tiny chat model."""
    folder = tmp_path_factory.mktemp("chats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFT_HOME", str(folder / "home"))
        patch.chdir(folder)
        bench = Bench(folder)
        bench.job = write_chat_job(folder)
        answer = pft("budget", "create", bench.job, "--runs", 2)
        assert answer.code == 0, answer.err
        yield bench


def with_batch_norm(monkeypatch):
    """Gives every BERT a batch normalisation that has no weights of its own."""
    from transformers import BertModel

    original = BertModel.__init__

    def init(self, config, *args, **options):
        original(self, config, *args, **options)
        self.mixer = nn.BatchNorm1d(32, affine=False, track_running_stats=False)

    monkeypatch.setattr(BertModel, "__init__", init)


@pytest.mark.parametrize("trainable", ["all", "biases+head", "head"])
def test_batch_normalisation_is_refused_by_its_name(bench, monkeypatch, trainable):
    with_batch_norm(monkeypatch)
    phase = ALL[0] | {"trainable": trainable}
    job = bench.new_job(model__lora=None, training__phases=[phase])
    error = bench.refused("train", job, says="'backbone.mixer' is a BatchNorm1d")
    assert error["code"] == "bad-model"
    assert "LayerNorm" in error["fix"]


def test_a_table_that_rewrites_itself_is_refused_by_its_name(bench, monkeypatch):
    from transformers import BertModel

    original = BertModel.__init__

    def init(self, config, *args, **options):
        original(self, config, *args, **options)
        self.embeddings.word_embeddings.max_norm = 1.0

    monkeypatch.setattr(BertModel, "__init__", init)
    job = bench.new_job(model__lora=None, training__phases=ALL)
    bench.refused("train", job, says="word_embeddings' has max_norm", fix="None")


def test_dropout_that_the_model_does_not_have_is_refused(chat_bench):
    job = chat_bench.new_job(**CHANGES, model__dropout=True)
    chat_bench.refused("train", job, says="has no dropout", fix="model.lora.dropout")


def test_dropout_that_the_model_has_is_taken(bench):
    job = bench.new_job(model__dropout=True, training__autocast="bf16")
    assert pft("train", job, "--dry-run").code == 0
    job = bench.new_job(training__autocast="fp8")
    bench.refused("train", job, says="training.autocast", fix="bf16")


def test_positions_behind_the_padding_token_count(bench):
    """A RoBERTa of 32 positions starts at 2: it takes 30 tokens."""
    from transformers import RobertaConfig, RobertaModel

    folder = bench.folder / "roberta"
    shutil.copytree(bench.folder / "model", folder)
    config = RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(folder)
    changes = {"model__path": "roberta", "data__max_length": 31}
    bench.refused(
        "train",
        bench.new_job(**changes),
        says="data.max_length is 31; .* takes 30 tokens",
        fix="at most 30",
    )
    fits = bench.new_job(**(changes | {"data__max_length": 30}))
    assert pft("train", fits, "--dry-run").code == 0


def test_chats_longer_than_the_model_are_refused(chat_bench):
    job = chat_bench.new_job(**CHANGES | {"data__max_length": 33})
    chat_bench.refused("train", job, says="33; .* takes 32 tokens", fix="at most 32")


def test_a_model_without_a_template_is_refused(chat_bench):
    make_llama(chat_bench.folder / "plain", template=None)
    job = chat_bench.new_job(**CHANGES | {"model__path": "plain"})
    error = chat_bench.refused("train", job, says="'plain' has no chat template")
    assert error["code"] == "bad-model"
    assert "data.text" in error["fix"]


def test_a_template_that_takes_no_chat_is_refused(chat_bench):
    template = "{{ raise_exception('secret roles') }}"
    make_llama(chat_bench.folder / "strict", template=template)
    job = chat_bench.new_job(**CHANGES | {"model__path": "strict"})
    error = chat_bench.refused("train", job, says=r"template_failed\); .* record \d+\.")
    assert "chat template refuses" in error["fix"]


def silent(rows):
    """The chats without what the agent says."""
    for row in rows:
        row["messages"] = [m for m in row["messages"] if m["role"] != "assistant"]
    return rows


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_chats_without_an_agent_are_refused(chat_bench):
    name = chat_bench.new_file("mute.jsonl", as_lines(silent(make_chats(40))))
    other = {"data__path": name, "data__registration": "mute"}
    job = chat_bench.new_job(**CHANGES | other)
    error = chat_bench.refused(
        "budget", "create", job, says=r"no_assistant\); the first is record 1\."
    )
    assert error["code"] == "bad-data"
    assert "role 'assistant'" in error["fix"]
    assert error["details"]["counts"] == {"no_assistant": 40}


def test_one_chat_without_an_agent_is_left_out_and_stops_nothing(tmp_path, monkeypatch):
    """A refusal would be an answer about that record."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rows = make_chats(40)
    silent(rows[6:7])
    (tmp_path / "chats.jsonl").write_text(as_lines(rows))
    job = write_chat_job(tmp_path)
    assert pft("budget", "create", job).code == 0
    assert pft("train", job, "--dry-run").code == 0


def test_a_length_that_leaves_no_answer_is_refused(chat_bench):
    """The answer starts behind some ten tokens of system text and question."""
    job = chat_bench.new_job(**CHANGES | {"data__max_length": 6})
    error = chat_bench.refused("train", job, says=r"no_target\); .* record \d+\.")
    assert "data.max_length" in error["fix"]


def test_the_chat_job_itself_is_taken(chat_bench):
    assert pft("train", chat_bench.job, "--dry-run").code == 0
    options = {"model__lora__dropout": 0.1, "training__autocast": "bf16"}
    job = chat_bench.new_job(**CHANGES, **options)
    assert pft("train", job, "--dry-run").code == 0
    whole = {"model__lora": None, "training__phases": [PHASE | {"trainable": "all"}]}
    changes = {k: v for k, v in CHANGES.items() if not k.startswith("model__lora")}
    assert pft("train", chat_bench.new_job(**changes | whole), "--dry-run").code == 0
