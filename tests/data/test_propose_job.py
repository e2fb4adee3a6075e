"""What `pft init` proposes from a file."""

from __future__ import annotations

import json

import pytest

from pft_ray.config import read_job
from pft_ray.data import DataSpec, SplitSpec, prepare_data, propose_job
from pft_ray.errors import DataError

KEYS = {
    "version", "name", "data", "model", "privacy", "training", "evaluation", "cluster",
}  # fmt: skip


def mails(num):
    return [
        {
            "body": f"this is mail number {n} " * (3 + n % 4),
            "category": ("spam", "ham")[n % 2],
            "ticket_id": f"T{n}",
            "sender": f"s{n % 9}@x.org",
        }
        for n in range(num)
    ]


def test_labelled_text_becomes_a_classification(write):
    path = write(mails(1234), "csv", "My Mails")
    job = propose_job(path)
    assert set(job) == KEYS
    data = job["data"]
    assert data["path"] == str(path)
    assert (data["text"], data["label"]) == ("body", "category")
    assert (data["id"], data["user"]) == ("ticket_id", "sender")
    assert data["labels"] == ["ham", "spam"]
    assert data["split"]["field"] == "sender"
    # 80 % and 20 % of 1,234, rounded down to two digits
    assert (data["num_train"], data["num_validation"]) == (980, 240)
    assert data["public"] is False
    assert job["model"]["task"] == "classification"
    assert 1 <= job["training"]["batch_size"] <= data["num_train"]
    assert job["name"] == data["registration"] == "my-mails"
    assert job["privacy"]["epsilon"] == 3.0
    assert job["privacy"]["delta"] * data["num_train"] < 0.1
    json.dumps(job)


def test_the_proposal_can_be_used_as_it_is(write, key):
    path = write(mails(300), "jsonl")
    data = propose_job(path)["data"]
    for name in ("registration", "public"):
        del data[name]
    split = SplitSpec(**data.pop("split"))
    data["labels"] = tuple(data["labels"])
    spec = DataSpec(**{**data, "path": path, "split": split})
    assert prepare_data(spec, key).dropped.counts == {}


@pytest.mark.parametrize("num", [3, 40, 5000])
@pytest.mark.parametrize("kind", ["labelled", "plain", "chat"])
def test_every_proposal_is_a_valid_job(write, num, kind):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = {
        "labelled": mails(num),
        "plain": [{"text": f"a text {n}"} for n in range(num)],
        "chat": [{"messages": chat}] * num,
    }[kind]
    job = read_job(propose_job(write(rows, "jsonl")))
    assert job.training.batch_size <= job.data.num_train
    assert job.privacy.delta * job.data.num_train < 1


def test_chats_become_a_causal_model(write):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    job = propose_job(write([{"messages": chat, "id": n} for n in range(9)], "jsonl"))
    assert job["data"]["messages"] == "messages"
    assert job["data"]["id"] == "id"
    assert "text" not in job["data"]
    assert "label" not in job["data"]
    assert job["model"]["task"] == "causal_lm"
    assert (job["data"]["num_train"], job["data"]["num_validation"]) == (7, 1)
    assert {p["trainable"] for p in job["training"]["phases"]} == {"adapter"}


def test_text_alone_becomes_a_causal_model(write):
    rows = [{"line": f"text {n} and more of it", "n": n} for n in range(40)]
    job = propose_job(write(rows, "parquet"))
    assert job["data"]["text"] == "line"
    assert job["model"]["task"] == "causal_lm"


def test_a_repeated_id_column_is_not_proposed(write):
    rows = [{"text": f"t{n}", "id": n // 2} for n in range(40)]
    assert "id" not in propose_job(write(rows, "parquet"))["data"]


def test_max_length_follows_the_typical_text(write):
    def proposed(num_chars):
        rows = [{"text": f"{n:03d}" + "x" * num_chars} for n in range(5)]
        return propose_job(write(rows, "jsonl"))["data"]["max_length"]

    assert [proposed(n) for n in (10, 250, 390, 50_000)] == [32, 64, 128, 256]


def test_a_file_without_text_is_refused(write):
    with pytest.raises(DataError, match="no column of text"):
        propose_job(write([{"a": 1, "b": 2.5}] * 3, "parquet"))
