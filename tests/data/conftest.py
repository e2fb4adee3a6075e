"""Small files and tokenizers that the data tests build for themselves."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

KEY = bytes(range(32))

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def write(tmp_path):
    """Writes rows in a format and returns the path."""

    def write_rows(rows, kind, name="mail"):
        if kind == "jsonl":
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "csv":
            path = tmp_path / f"{name}.csv"
            import csv

            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif kind == "parquet":
            path = tmp_path / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif kind == "parquet_folder":
            path = tmp_path / name
            (path / "data").mkdir(parents=True)
            half = len(rows) // 2
            for place, part in enumerate((rows[:half], rows[half:])):
                table = pa.Table.from_pylist(part)
                pq.write_table(table, path / "data" / f"part-{place}.parquet")
        else:
            assert kind == "saved"
            path = tmp_path / name
            save_to_disk(pa.Table.from_pylist(rows), path)
        return path

    return write_rows


def save_to_disk(table, path, num_shards=2):
    """Writes what datasets.Dataset.save_to_disk writes: Arrow streams and a state."""
    path.mkdir()
    size = -(-table.num_rows // num_shards)
    names = []
    for place in range(num_shards):
        name = f"data-{place:05d}-of-{num_shards:05d}.arrow"
        with pa.OSFile(str(path / name), "wb") as sink:
            part = table.slice(place * size, size)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(part)
        names.append({"filename": name})
    (path / "state.json").write_text(json.dumps({"_data_files": names}))
    (path / "dataset_info.json").write_text("{}")


@pytest.fixture(scope="session")
def word_tokenizer():
    """One token a word, in the order of first appearance below."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "<pad> <unk> <end> <user> <assistant> <system> hi how are you fine ok bye"
    vocabulary = {word: place for place, word in enumerate(words.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=(
            "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>\n"
            "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
        ),
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE with ChatML marks, as most chat models have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello there, how are you?\nfine thanks\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|end|>",
        chat_template=CHATML,
    )
