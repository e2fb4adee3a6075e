"""Which characters of a rendered chat the assistant wrote.

The model's own template renders a conversation; the part of each answer is found by
rendering the conversation up to it and through it. Works for every template whose
earlier text does not depend on later messages, and for the last answer of most
others; an answer that cannot be placed carries no loss, and no other token ever does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pft_ray.data.validate import TEMPLATE_FAILED, Fault, Message

Region = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]

_PROBE = "(pft-ray: the answer starts here)"


def template_of(tokenizer: Any) -> Render:
    """Returns a function that renders messages by the tokenizer's chat template.

    Its second argument asks for the header of the next answer at the end.
    """

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:  # noqa: FBT001
        chat = [{"role": role, "content": text} for role, text in messages]
        return str(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    return render


def render_chat(
    messages: Sequence[Message], render: Render
) -> tuple[str, list[Region]] | Fault:
    """Renders a conversation and finds the assistant's answers in it.

    Args:
        messages: (role, content) pairs.
        render: See :func:`template_of`.

    Returns:
        The text and the (start, end) characters of the answers, end-of-turn marks
        included, or a fault when the template refuses this conversation.
    """
    try:
        text = render(messages, False)
    except Exception:  # noqa: BLE001 - a template may raise anything on one record
        return Fault(TEMPLATE_FAILED)
    regions = []
    for place, (role, content) in enumerate(messages):
        if role != "assistant" or not content.strip():
            continue
        try:
            region = _answer_region(text, messages, place, render)
        except Exception:  # noqa: BLE001 - this answer cannot be placed
            region = None
        if region is not None:
            regions.append(region)
    return (text, regions) if regions else Fault(TEMPLATE_FAILED)


def _answer_region(
    text: str, messages: Sequence[Message], place: int, render: Render
) -> Region | None:
    start = _answer_start(text, messages[:place], render)
    if start is None:
        return None
    through = render(messages[: place + 1], False)
    if text.startswith(through):
        end = len(through)
    else:  # the template writes something else after an answer that is not the last
        content = messages[place][1].strip()
        blank = len(text[start:]) - len(text[start:].lstrip())
        if not text.startswith(content, start + blank):
            return None
        end = start + blank + len(content)
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if end > start else None


def _answer_start(text: str, earlier: Sequence[Message], render: Render) -> int | None:
    """Returns where the answer after the ``earlier`` messages starts.

    That is behind the header which the template writes for an answer to come. A
    template without such a header, or one that wants a message first, is asked to
    render a known answer instead.
    """
    if earlier:
        before = render(earlier, True)
        if text.startswith(before) and before != render(earlier, False):
            return len(before)
    probe = render([*earlier, ("assistant", _PROBE)], False)
    start = probe.rfind(_PROBE)
    return start if start >= 0 and text.startswith(probe[:start]) else None


def loss_mask(offsets: Sequence[Region], regions: Sequence[Region]) -> list[int]:
    """Marks the tokens that lie wholly inside an answer.

    Args:
        offsets: (start, end) characters of each token.
        regions: From :func:`render_chat`.

    Returns:
        1 or 0 for each token; the first is 0, as nothing predicts it.
    """
    mask = [int(any(_inside(token, region) for region in regions)) for token in offsets]
    if mask:
        mask[0] = 0
    return mask


def _inside(token: Region, region: Region) -> bool:
    start, end = token
    if start == end:  # a token without characters of its own
        return region[0] < start and end <= region[1]
    return region[0] <= start and end <= region[1]
