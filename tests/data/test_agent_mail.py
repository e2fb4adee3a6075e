"""The shipped chats of the agent job are what their README says."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pft_ray.cluster.inputs import capped_blocks
from pft_ray.config import build_job, load_job
from pft_ray.data import prepare_data

JOBS = Path(__file__).parents[2] / "jobs"
FOLDER = JOBS / "data"
FILE = FOLDER / "agent_mail.parquet"


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(FILE).to_pylist()


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    path = FOLDER / "prepare_agent_mail.py"
    spec = importlib.util.spec_from_file_location("agent_mail", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent_mail"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules["agent_mail"], sys.modules["prepare_mail"]
    sys.path.remove(str(FOLDER))


def test_every_row_is_one_task_and_its_answer(rows):
    assert pq.read_schema(FILE).names == ["messages", "sender"]
    assert FILE.stat().st_size <= 1_000_000
    for row in rows:
        system, user, assistant = row["messages"]
        assert system == {"role": "system", "content": "You write mail."}
        assert user["role"] == "user"
        assert re.fullmatch(r"Subject: .{1,60}", user["content"])
        assert assistant["role"] == "assistant"
        assert 40 <= len(assistant["content"]) <= 180
    senders = Counter(row["sender"] for row in rows)
    assert set(senders) == set(range(835))
    assert max(senders.values()) == 50
    assert len({row["messages"][2]["content"] for row in rows}) == len(rows)


def test_the_readme_names_this_file(rows):
    text = (FOLDER / "README.md").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in text
    assert f"{len(rows):,} chats" in text


def test_no_address_or_quotation_is_left(rows):
    for row in rows:
        for message in row["messages"]:
            assert not re.search(r"\w@\w", message["content"])
            assert "http://" not in message["content"]
        assert not row["messages"][2]["content"].startswith(">")


def test_quotations_and_their_headers_are_left_out(script):
    import email

    text = (
        "Subject: [list] Re: tea\n\n"
        "On Monday, Ann wrote:\n> Is there tea?\nThere is. Come at four!\n"
        "Ann said:\n>> green\nYes.\n-- \nBob\n"
    )
    words = script.own_words(email.message_from_string(text))
    assert script.clean(words) == "There is. Come at four! Yes."


def test_a_text_is_cut_after_a_sentence_or_at_a_space(script):
    first = "It is a long first sentence, of some forty letters. And"
    assert script.cut(first + " more words", 58) == first[:-4]
    assert script.cut("no full stop " * 5, 30) == "no full stop no full stop no"
    assert (
        script.cut("Short. Then a much longer text goes on", 30)
        == ("Short. Then a much longer text"[:-5])
    )
    assert script.cut("short", 30) == "short"


def test_the_job_cuts_these_blocks(key):
    """The split is public and the file fixed, so the sizes are known; the declared
    ones, 2,900 and 390, are round on purpose."""
    path = JOBS / "agent_mail.yaml"
    built = build_job(load_job(path), path.parent)
    assert built.epsilon <= 8
    assert built.plan.evaluation.kind == "causal_lm"
    prepared = prepare_data(built.job.data.spec(path.parent), key)
    assert (len(prepared.train), len(prepared.validation)) == (2941, 373)
    declared = built.job.data
    assert (declared.num_train, declared.num_validation) == (2900, 390)


def test_the_job_of_senders_cuts_these_blocks(key):
    """747 senders with 1,443 mails after the cap, and 88 held out; declared round."""
    path = JOBS / "agent_mail_users.yaml"
    built = build_job(load_job(path), path.parent)
    plan, declared = built.plan, built.job.data
    assert 7.9 < built.epsilon <= 8
    assert plan.unit == "user"
    assert plan.user.kind == "uls"
    assert 1.4 < plan.noise_multiplier < 1.5
    prepared = prepare_data(declared.spec(path.parent), key)
    train, held_out = capped_blocks(prepared, built.job)
    users = {bytes(row) for row in train.users}
    others = {bytes(row) for row in held_out.users}
    assert not users & others
    assert (len(users), len(train)) == (747, 1443)
    assert len(others) == len(held_out) == 88
    assert (declared.num_train, declared.num_validation) == (750, 90)
    assert plan.user.num_records == built.job.privacy.num_train_records == 1450


def test_the_job_of_senders_differs_in_its_unit_alone():
    mail, senders = (
        load_job(JOBS / name) for name in ("agent_mail.yaml", "agent_mail_users.yaml")
    )
    assert mail.data.path == senders.data.path
    assert senders.data.user == mail.data.split.field == "sender"
    assert senders.data.split.salt == mail.data.split.salt
    assert senders.data.registration != mail.data.registration
    assert mail.model == senders.model
    assert mail.training.phases == senders.training.phases
