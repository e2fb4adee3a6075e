"""The loss of a chat lies on what the assistant wrote, for templates of many kinds."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_ray.data import Fault, encode_contents
from pft_ray.data.chat import loss_mask, render_chat


def renderer(template):
    compiled = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False
    ).from_string(template)

    def refuse(text):
        raise ValueError(text)

    def render(messages, add_generation_prompt):
        chat = [{"role": role, "content": text} for role, text in messages]
        return compiled.render(
            messages=chat,
            add_generation_prompt=add_generation_prompt,
            raise_exception=refuse,
        )

    return render


TALK = (("user", "hi"), ("assistant", "fine"), ("user", "and"), ("assistant", "bye"))
LOOP = "{% for m in messages %}"
TEMPLATES = {
    # template -> what the assistant's parts must be
    "chatml": (
        LOOP + "<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
        ["fine<e>", "bye<e>"],
    ),
    "header only for the answer to come": (
        LOOP + "{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}",
        ["fine", "bye"],
    ),
    "default system text": (
        LOOP + "{% if loop.first and m.role != 'system' %}<s>system\nSYS<e>\n"
        "{% endif %}<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
        ["fine<e>", "bye<e>"],
    ),
    "no generation prompt": (
        LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}",
        ["fine", "bye"],
    ),
    "end mark after the last answer alone": (
        LOOP + "[{{ m.role }}] {{ m.content }}{% if loop.last and "
        "m.role == 'assistant' %}<eos>{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
        ["fine", "bye<eos>"],
    ),
    "thinking is dropped from earlier answers": (
        LOOP + "{{ m.role }}|{% if m.role == 'assistant' and loop.last %}<think>"
        "</think>{% endif %}{{ m.content }}.\n{% endfor %}"
        "{% if add_generation_prompt %}assistant|{% endif %}",
        ["fine", "<think></think>bye."],
    ),
    "system text moves into the last question": (
        LOOP + "{% if m.role == 'user' and loop.index0 >= messages|length - 2 %}"
        "SYS {% endif %}{{ m.role }}|{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}assistant|{% endif %}",
        ["bye|"],
    ),
    "content is trimmed": (
        LOOP + "{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant>{% endif %}",
        ["fine</s>", "bye</s>"],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_in_every_kind_of_template(name):
    template, expected = TEMPLATES[name]
    text, regions = render_chat(TALK, renderer(template))
    assert [text[start:end] for start, end in regions] == expected


def test_the_system_text_template_really_moves_it():
    template, _ = TEMPLATES["system text moves into the last question"]
    render = renderer(template)
    assert not render(TALK, False).startswith(render(TALK[:1], True))


def test_an_answer_that_cannot_be_placed_puts_no_loss_on_a_later_question():
    moved = renderer(TEMPLATES["system text moves into the last question"][0])
    talk = (("user", "hi"), ("assistant", "a"), ("user", "a a"), ("assistant", "bye"))
    text, regions = render_chat(talk, moved)
    assert [text[a:b] for a, b in regions] == ["bye|"]
    upper = renderer(
        LOOP + "[{{ m.role }}] {{ m.content | upper }}{% if loop.last and "
        "m.role == 'assistant' %}<eos>{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    talk = (("user", "Q"), ("assistant", "b c"), ("user", "B C"), ("assistant", "Z"))
    text, regions = render_chat(talk, upper)
    assert [text[a:b] for a, b in regions] == ["Z<eos>"]


def test_an_answer_that_repeats_the_question_is_placed_right():
    template, _ = TEMPLATES["no generation prompt"]
    talk = (("user", "user: hi"), ("assistant", "hi"), ("user", "hi"))
    text, regions = render_chat(talk, renderer(template))
    assert text == "user: user: hi\nassistant: hi\nuser: hi\n"
    assert regions == [(26, 28)]


def test_an_answer_that_repeats_its_own_header_is_placed_right():
    template, _ = TEMPLATES["no generation prompt"]
    talk = (("user", "x"), ("assistant", "assistant"))
    assert render_chat(talk, renderer(template)) == (
        "user: x\nassistant: assistant\n",
        [(19, 28)],
    )


def test_an_answer_first_and_an_empty_answer():
    template, _ = TEMPLATES["chatml"]
    talk = (("assistant", "hello"), ("user", "x"), ("assistant", " "))
    text, regions = render_chat(talk, renderer(template))
    assert [text[a:b] for a, b in regions] == ["hello<e>"]


def test_a_refused_conversation_is_a_fault():
    strict = (
        LOOP + "{% if loop.index0 == 0 and m.role != 'user' %}"
        "{{ raise_exception('roles') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    talk = (("assistant", "x"),)
    assert render_chat(talk, renderer(strict)) == Fault("template_failed")
    assert render_chat((("user", "x"),), renderer(strict)) == Fault("template_failed")


def test_only_tokens_wholly_inside_an_answer_count():
    offsets = [(0, 2), (2, 4), (3, 5), (4, 6), (6, 6), (6, 8), (8, 8), (7, 9)]
    assert loss_mask(offsets, [(4, 8)]) == [0, 0, 0, 1, 1, 1, 1, 0]
    assert loss_mask([(0, 3), (3, 5)], [(0, 5)]) == [0, 1]
    assert loss_mask([], [(0, 5)]) == []


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=12
).filter(lambda text: text == text.strip() and text)
TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), WORDS),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(TURNS)
def test_masked_tokens_spell_the_answers_and_nothing_else(byte_tokenizer, turns):
    talk = (*turns, ("assistant", "done"))
    (result,) = encode_contents([talk], byte_tokenizer, 512, "causal_lm")
    kept = [i for i, on in zip(result.ids, result.loss, strict=True) if on]
    answers = [text for role, text in talk if role == "assistant"]
    spelt = byte_tokenizer.decode(kept, clean_up_tokenization_spaces=False)
    assert spelt == "".join(text + "<|im_end|>" for text in answers)


def test_one_refused_conversation_touches_no_other(byte_tokenizer):
    class Strict:
        def __getattr__(self, name):
            return getattr(byte_tokenizer, name)

        def __call__(self, *args, **kwargs):
            return byte_tokenizer(*args, **kwargs)

        def apply_chat_template(self, chat, **kwargs):
            if chat and chat[0]["role"] == "tool":
                raise jinja2.TemplateError("PRIVATE")
            return byte_tokenizer.apply_chat_template(chat, **kwargs)

    good = (("user", "hello"), ("assistant", "fine"))
    bad = (("tool", "x"), ("assistant", "y"))
    alone = encode_contents([good], byte_tokenizer, 64, "causal_lm")
    results = encode_contents([bad, good, bad], Strict(), 64, "causal_lm")
    assert results == [Fault("template_failed"), *alone, Fault("template_failed")]
