"""The shipped mail subset is what its README says."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pft_ray.data import DataSpec, SplitSpec, prepare_data

FOLDER = Path(__file__).parents[2] / "jobs" / "data"
FILE = FOLDER / "mail.parquet"


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(FILE).to_pylist()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mail", FOLDER / "prepare_mail.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    import sys

    sys.modules["mail"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mail"]


def test_columns_sizes_and_counts(rows):
    schema = pq.read_schema(FILE)
    assert schema.names == ["text", "label", "sender"]
    assert [str(kind) for kind in schema.types] == ["string", "string", "int32"]
    assert FILE.stat().st_size <= 4_000_000
    assert Counter(row["label"] for row in rows) == {"ham": 3452, "spam": 1737}
    senders = Counter(row["sender"] for row in rows)
    assert len(senders) == 2506
    assert max(senders.values()) == 50
    assert set(senders) == set(range(2506))
    assert len({row["text"] for row in rows}) == len(rows)
    assert max(len(row["text"]) for row in rows) <= 700


def test_the_readme_names_this_file(rows):
    text = (FOLDER / "README.md").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in text
    assert f"{len(rows):,}" in text


def test_no_address_header_or_list_footer_is_left(rows):
    for row in rows:
        text = row["text"]
        assert not re.search(r"[\w.+-]+@[\w-]+\.[a-z]", text, re.I)
        assert not re.search(r"^(Received|Return-Path|Delivered-To):", text)
        assert "listinfo" not in text
        assert "sf.net email is sponsored" not in text
        assert not re.search(r"https?://\w", text)


def test_neither_class_is_told_by_a_mask_or_a_list_word_alone(rows):
    """A single word must not reach what a model has to work for."""
    majority = 3452 / len(rows)
    for word in ("URL", "EMAIL", "NUMBER", "HOST", "mailing list", "unsubscribe"):
        table = Counter((word in row["text"], row["label"]) for row in rows)
        right = sum(
            max(table[found, "ham"], table[found, "spam"]) for found in (True, False)
        )
        assert right / len(rows) < majority + 0.05, word


def test_it_loads_and_splits_by_sender(rows, key):
    spec = DataSpec(
        path=FILE,
        num_train=4100,
        num_validation=1000,
        text="text",
        label="label",
        labels=("ham", "spam"),
        user="sender",
        split=SplitSpec(field="sender"),
        max_length=64,
        deduplicate="beforehand",
    )
    data = prepare_data(spec, key)
    assert data.dropped.counts == {}
    assert len(data.train) + len(data.validation) == len(rows)
    assert 800 < len(data.validation) < 1300
    sides = [
        {rows[number - 1]["sender"] for number in block.numbers}
        for block in (data.train, data.validation)
    ]
    assert not sides[0] & sides[1]


def test_masking_and_cutting(script):
    assert script.masked("mail  bob@example.com or see http://a.b/c?d=1 now") == (
        "mail EMAIL or see URL now"
    )
    assert script.masked("at www.x.org and host.example.net, 10.0.0.1") == (
        "at URL and HOST , HOST"
    )
    assert script.masked("call +1 (555) 123-4567 on 2002-10-01 at 11:58") == (
        "call NUMBER on 2002-10-01 at 11:58"
    )
    assert script.cut("word " * 300).endswith("word")
    assert len(script.cut("x" * 900)) == 700


def test_subject_footer_and_html(script, tmp_path):
    import json

    def mail(raw):
        path = tmp_path / "easy-ham-1-test.json"
        path.write_text(json.dumps({"group": "easy-ham-1", "text": raw}))
        return script.read_mail(path)

    plain = mail(
        "From: Bob <Bob@Example.com>\nSubject: Re: [List] [tag] Re: a question\n\n"
        "the body\n\n"
        "_______________________________________________\nList mailing list\nmore\n"
    )
    assert plain.text == "Re: a question the body"
    assert (plain.label, plain.sender) == ("ham", "bob@example.com")
    rich = mail(
        "From: a@b.c\nSubject: =?utf-8?q?caf=C3=A9?=\nContent-Type: text/html\n"
        "Content-Transfer-Encoding: quoted-printable\n\n"
        "<html><style>p{}</style><p>now=20&amp; <b>here</b></p></html>\n"
    )
    assert rich.text == "café now & here"


def test_selection_removes_copies_and_caps_senders(script):
    mails = [
        script.Mail(script.fixed_hash("mail", str(n)), "ham", f"s{n % 2}", f"t{n // 2}")
        for n in range(240)
    ]
    kept, steps = script.select(mails)
    assert [len(part) for _, part in steps] == [240, 240, 120, len(kept)]
    assert len({m.text for m in kept}) == len(kept)
    assert max(Counter(m.sender for m in kept).values()) == 50
    assert script.select(mails[::-1])[0] == kept
