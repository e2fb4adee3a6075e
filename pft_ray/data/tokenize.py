"""Turns the units of a block into padded token arrays of public shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pft_ray.data.chat import Region, Render, loss_mask, render_chat, template_of
from pft_ray.data.paths import pretrained_arguments
from pft_ray.data.tokens import TokenTable
from pft_ray.data.turns import Conversation, bounded, fewest_dropped, split_turns
from pft_ray.data.validate import (
    EMPTY,
    NO_TARGET,
    TEMPLATE_FAILED,
    TOKENIZER_FAILED,
    Content,
    Dropped,
    Fault,
)
from pft_ray.errors import DataError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pft_ray.data.prepare import Records

Task = Literal["classification", "causal_lm"]

_BATCH = 512
_FEW = 32
_MIN_CHARS = 10_000
_CHARS_PER_TOKEN = 64


@dataclass(frozen=True)
class Encoded:
    """The tokens of one record.

    Attributes:
        ids: Token ids, at most max_length.
        loss: 1 where a token is predicted, for causal language models.
        truncated: Whether something was cut off.
    """

    ids: list[int]
    loss: list[int] | None = None
    truncated: bool = False


def load_tokenizer(resolved: str) -> Any:
    """Loads the tokenizer of a model; a folder is read without network access.

    Args:
        resolved: From :func:`pft_ray.data.paths.resolve_model_path`.

    Raises:
        ModelError: There is no tokenizer, it has no vocabulary, or it is not of the
            fast kind, which alone tells where in the text a token lies.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError(
            "Tokenising needs transformers, which is not installed.",
            "Run pip install 'pft-ray[train]'.",
        ) from None
    name, arguments = pretrained_arguments(resolved)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"No tokenizer can be loaded from {name!r} ({type(error).__name__}).",
            "The folder needs tokenizer.json and tokenizer_config.json.",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {name!r} has no tokenizer.json.",
            "Convert it with transformers' fast tokenizers and save it again.",
        )
    # Without files the library makes up an empty tokenizer: every word is unknown.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ModelError(
            f"The tokenizer of {name!r} knows no words: its files are missing.",
            "The folder needs tokenizer.json and tokenizer_config.json.",
        )
    return tokenizer


def tokenize_table(
    records: Records, tokenizer: Any, max_length: int, task: Task
) -> tuple[TokenTable, Dropped]:
    """Tokenises the units of a block, each by itself.

    Plain text for causal language models predicts every token but the first, and an
    end-of-text token is added where it fits. Chats carry loss on the assistant's
    tokens alone. A chat that is too long loses its oldest turns after the system
    messages, and the end of its last turn when that alone is too long. A record that
    cannot be tokenised, or that keeps no token to predict, is dropped: it is absent,
    which is the same as contributing zero.

    Args:
        records: Units of one block.
        tokenizer: From :func:`load_tokenizer`.
        max_length: Public padded length T.
        task: ``classification`` keeps targets, ``causal_lm`` makes loss masks.

    Returns:
        The table, and what was dropped or cut.

    Raises:
        DataError: max_length has no room, a chat template is missing, or not one
            record of the block could be tokenised.

    Guarantee:
        A row depends on its own record, the tokenizer and max_length alone; no
        exception on one record changes or removes another.
    """
    results = encode_contents(records.contents, tokenizer, max_length, task)
    _check_all_failed(results, records.numbers, max_length)
    kept = [p for p, result in enumerate(results) if isinstance(result, Encoded)]
    rows = [result for result in results if isinstance(result, Encoded)]
    faults = [
        (records.numbers[place], result.reason)
        for place, result in enumerate(results)
        if isinstance(result, Fault)
    ]
    places = np.asarray(kept, dtype=np.int64)
    targets = records.targets if task == "classification" else None
    table = TokenTable(
        input_ids=_padded([row.ids for row in rows], max_length, _pad_id(tokenizer)),
        lengths=np.asarray([len(row.ids) for row in rows], dtype=np.int32),
        digests=records.digests[places],
        targets=None if targets is None else targets[places],
        loss_mask=None
        if task == "classification"
        else _padded([row.loss or [] for row in rows], max_length, 0).astype(np.uint8),
        users=None if records.users is None else records.users[places],
        owners=None if records.owners is None else records.owners[places],
    )
    num_truncated = sum(row.truncated for row in rows)
    return table, Dropped.from_pairs(faults, num_truncated)


def check_some_tokens(
    records: Records, tokenizer: Any, max_length: int, task: Task
) -> None:
    """Tokenises records until one has something to learn from.

    Raises:
        DataError: As :func:`tokenize_table`.
    """
    results: list[Encoded | Fault] = []
    for start in range(0, len(records), _FEW):
        part = records.contents[start : start + _FEW]
        results += encode_contents(part, tokenizer, max_length, task)
        if any(isinstance(result, Encoded) for result in results):
            return
    _check_all_failed(results, records.numbers, max_length)


def encode_contents(
    contents: Sequence[Content], tokenizer: Any, max_length: int, task: Task
) -> list[Encoded | Fault]:
    """Tokenises texts or chats; returns tokens or the fault of each, in order.

    Raises:
        DataError: max_length has no room for text, or a chat template is missing.
    """
    num_special = int(tokenizer.num_special_tokens_to_add())
    if max_length <= num_special:
        raise DataError(
            f"max_length {max_length} leaves no room: the tokenizer adds "
            f"{num_special} tokens of its own.",
            f"Give data.max_length above {num_special}.",
        )
    if any(not isinstance(content, str) for content in contents):
        return _encode_chats(contents, tokenizer, max_length)
    limit = max(_MIN_CHARS, _CHARS_PER_TOKEN * max_length)
    texts = [str(content) for content in contents]
    encodings = _call(tokenizer, [t[:limit] for t in texts], max_length, special=True)
    results: list[Encoded | Fault] = []
    for text, encoding in zip(texts, encodings, strict=True):
        if isinstance(encoding, Fault):
            results.append(encoding)
            continue
        cut = bool(encoding.overflowing) or len(text) > limit
        ids = list(encoding.ids)
        if task == "causal_lm":
            results.append(_with_text_loss(ids, tokenizer, max_length, cut=cut))
        else:
            results.append(Encoded(ids, None, cut) if ids else Fault(EMPTY))
    return results


def _with_text_loss(
    ids: list[int], tokenizer: Any, max_length: int, *, cut: bool
) -> Encoded | Fault:
    end = tokenizer.eos_token_id
    if end is not None and not cut and len(ids) < max_length and ids[-1:] != [end]:
        ids = [*ids, end]
    if len(ids) < 2:
        return Fault(NO_TARGET)
    return Encoded(ids, [0] + [1] * (len(ids) - 1), cut)


def _encode_chats(
    contents: Sequence[Content], tokenizer: Any, max_length: int
) -> list[Encoded | Fault]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "The model's tokenizer has no chat template.",
            "Use an instruction-tuned model, or give plain text in data.text.",
        )
    render = template_of(tokenizer)
    limit = max(_MIN_CHARS, _CHARS_PER_TOKEN * max_length)
    given = [split_turns(() if isinstance(c, str) else c) for c in contents]
    talks = [bounded(talk, max_length, limit) for talk in given]
    rendered = [render_chat(talk.without_oldest(0), render) for talk in talks]
    texts = [one[0] for one in rendered if not isinstance(one, Fault)]
    encodings = iter(_call(tokenizer, texts, max_length, special=False))
    results: list[Encoded | Fault] = []
    for talk, whole, one in zip(talks, given, rendered, strict=True):
        if isinstance(one, Fault):
            results.append(one)
            continue
        encoding = next(encodings)
        cut = talk != whole
        if not isinstance(encoding, Fault) and encoding.overflowing:
            results.append(_without_old_turns(talk, tokenizer, render, max_length))
        else:
            results.append(_masked(encoding, one[1], cut=cut))
    return results


def _without_old_turns(
    talk: Conversation, tokenizer: Any, render: Render, max_length: int
) -> Encoded | Fault:
    """Leaves out the oldest turns until the rest fits; else cuts the last one's end."""
    tried: dict[int, tuple[Any, list[Region]] | Fault] = {}

    def fits(num_dropped: int) -> bool:
        found = render_chat(talk.without_oldest(num_dropped), render)
        if isinstance(found, Fault):
            tried[num_dropped] = found
            return False
        (encoding,) = _call(tokenizer, [found[0]], max_length, special=False)
        tried[num_dropped] = (encoding, found[1])
        return not isinstance(encoding, Fault) and not encoding.overflowing

    num_dropped = fewest_dropped(len(talk.turns), fits)
    if num_dropped not in tried:
        fits(num_dropped)
    result = tried[num_dropped]
    if isinstance(result, Fault):
        return result
    return _masked(*result, cut=True)


def _masked(encoding: Any, regions: list[Region], *, cut: bool) -> Encoded | Fault:
    if isinstance(encoding, Fault):
        return encoding
    mask = loss_mask(encoding.offsets, regions)
    if not any(mask):
        return Fault(NO_TARGET)
    return Encoded(list(encoding.ids), mask, cut)


def _call(
    tokenizer: Any, texts: list[str], max_length: int, *, special: bool
) -> list[Any]:
    """Returns an encoding, or a fault, for each text.

    Texts go in batches; a batch that fails is done again one text at a time, so that
    only the text at fault is lost.
    """
    results: list[Any] = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        found = _try_call(tokenizer, batch, max_length, special=special)
        if found is None:
            alone = [
                _try_call(tokenizer, [text], max_length, special=special)
                for text in batch
            ]
            found = [one[0] if one else Fault(TOKENIZER_FAILED) for one in alone]
        results.extend(found)
    return results


def _try_call(
    tokenizer: Any, texts: list[str], max_length: int, *, special: bool
) -> list[Any] | None:
    try:
        batch = tokenizer(
            texts,
            add_special_tokens=special,
            truncation=True,
            max_length=max_length,
            padding=False,
            verbose=False,
        )
        encodings = list(batch.encodings)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a Rust panic is no Exception
        return None
    return encodings if len(encodings) == len(texts) else None


def _check_all_failed(
    results: list[Encoded | Fault], numbers: Sequence[int], max_length: int
) -> None:
    reasons = {r.reason for r in results if isinstance(r, Fault)}
    if not results or any(isinstance(result, Encoded) for result in results):
        return
    fixes = {
        TEMPLATE_FAILED: "The model's chat template refuses every conversation: "
        "check the roles and their order.",
        NO_TARGET: f"Nothing is left to predict within {max_length} tokens: raise "
        "data.max_length.",
    }
    fix = " ".join(fixes[reason] for reason in sorted(reasons & set(fixes)))
    raise DataError(
        f"No record could be tokenised ({', '.join(sorted(reasons))}); the first is "
        f"record {min(numbers)}.",
        fix or "Check the model's tokenizer and the text column.",
    )


def _padded(rows: list[list[int]], max_length: int, fill: int) -> Any:
    out = np.full((len(rows), max_length), fill, dtype=np.int32)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def _pad_id(tokenizer: Any) -> int:
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0
