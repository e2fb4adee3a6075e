"""A real GGUF file, written here: weights, tokenizer and template come out whole."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch

from pft_ray.data import gguf as ours
from pft_ray.data.tokenize import load_tokenizer
from pft_ray.errors import ModelError

HEADS, KEY_HEADS, HIDDEN, INNER, LAYERS = 4, 2, 64, 96, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KIND = gguf.GGMLQuantizationType


def tokens_and_merges():
    """A byte-level BPE: all bytes, two merges, three marks."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return [*marks, *letters, "te", "tea"], ["t e", "te a"]


def random_weights(vocab):
    """fp32 weights under the names of transformers; norms are near 1."""
    rng = np.random.default_rng(8)

    def matrix(rows, cols):
        return (0.3 * rng.standard_normal((rows, cols))).astype(np.float32)

    size = HIDDEN // HEADS * KEY_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (size, HIDDEN),
        "self_attn.v_proj": (size, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    found = {"model.embed_tokens.weight": matrix(vocab, HIDDEN)}
    norms = ["model.norm.weight"]
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        for name, shape in shapes.items():
            found[f"{place}{name}.weight"] = matrix(*shape)
        norms += [f"{place}{n}_layernorm.weight" for n in ("input", "post_attention")]
    for name in norms:
        found[name] = 1 + 0.1 * rng.standard_normal(HIDDEN).astype(np.float32)
    return found


def packed_name(name):
    """The name that GGUF gives to a weight of a Llama."""
    for long, short in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ):
        name = name.replace(long, short)
    return name


def interleaved(matrix, heads):
    """Rows of each head as GGUF orders them: pairs that rotate lie side by side."""
    half = matrix.shape[0] // heads // 2
    order = [
        head * 2 * half + part * half + place
        for head in range(heads)
        for place in range(half)
        for part in (0, 1)
    ]
    return matrix[order]


def write_gguf(path, quantized):
    """Writes a random Llama; returns the weights as they are behind quantisation."""
    tokens, merges = tokens_and_merges()
    weights = random_weights(len(tokens))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *([1] * (len(tokens) - 3))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    kept = {}
    for name, value in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        stored = value if heads is None else interleaved(value, heads)
        if value.ndim == 1:
            writer.add_tensor(packed_name(name), stored)
            kept[name] = value
            continue
        data = gguf.quants.quantize(stored, quantized)
        writer.add_tensor(packed_name(name), data, raw_dtype=quantized)
        # Blocks lie along a row, so moving rows and quantising may change places.
        kept[name] = gguf.quants.dequantize(
            gguf.quants.quantize(value, quantized), quantized
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
def test_every_weight_comes_out_where_it_belongs(home, name):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    kept = write_gguf(home / "tiny.gguf", KIND[name])
    folder = ours.converted_folder(home / "tiny.gguf")
    found = load_file(folder / "model.safetensors")
    found.pop("lm_head.weight", None)  # tied: at most a copy of the table
    assert set(found) == set(kept)
    for weight, value in kept.items():
        assert found[weight].dtype == torch.bfloat16
        expected = torch.from_numpy(np.ascontiguousarray(value)).bfloat16()
        assert torch.equal(found[weight], expected), weight
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_key_value_heads == KEY_HEADS
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        logits = model(torch.tensor([[1, 5, 6]])).logits
    assert bool(torch.isfinite(logits).all())


def test_the_tokenizer_comes_with_merges_marks_and_template(home):
    write_gguf(home / "tiny.gguf", KIND.Q8_0)
    tokenizer = load_tokenizer(str(ours.converted_folder(home / "tiny.gguf")))
    tokens, _ = tokens_and_merges()
    assert tokenizer("tea", add_special_tokens=False).input_ids == [tokens.index("tea")]
    talk = [{"role": "user", "content": "tea"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == "<|im_start|>user\ntea<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert (ids[0], ids.count(2)) == (1, 1), "marks are single tokens"
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "header"])
def test_a_file_that_is_no_whole_model_is_refused_and_leaves_nothing(home, damage):
    file = home / "tiny.gguf"
    write_gguf(file, KIND.Q8_0)
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "empty": b"",
            "other": b"PK\x03\x04" + data[4:],
            "header": data[:24] + b"\xff" * 64 + data[88:],
        }[damage]
    )
    with pytest.raises(ModelError, match=r"'tiny\.gguf' does not load") as caught:
        ours.converted_folder(file)
    assert "GGUF" in caught.value.fix
    assert list((home / "home" / "models").iterdir()) == []


def test_the_record_names_what_was_written(home):
    write_gguf(home / "tiny.gguf", KIND.Q8_0)
    folder = ours.converted_folder(home / "tiny.gguf")
    record = json.loads((folder / ours.RECORD).read_text())
    assert record["source"] == "tiny.gguf"
    written = {path.name for path in folder.iterdir()} - {ours.RECORD}
    assert set(record["sha256"]) == written
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= written
