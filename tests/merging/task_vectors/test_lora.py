"""PEFT LoRA directories expand to the weights that peft merges."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import use_small_blocks
from support.loras import (
    PEFT_WARNINGS,
    Toy,
    adapt,
    edit_config,
    edit_weights,
    make_toy,
    refusal,
    save_base,
    save_small_adapter,
)
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from flexswitch.merging.checkpoints.fingerprint import identify
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.task_vectors import lora
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor

pytestmark = PEFT_WARNINGS


@pytest.fixture(scope="module")
def toy() -> Toy:
    return make_toy()


@pytest.fixture
def base(toy: Toy, tmp_path: Path) -> Path:
    return save_base(toy, tmp_path / "base")


@pytest.fixture
def adapter(toy: Toy, tmp_path: Path) -> Path:
    return save_small_adapter(toy, tmp_path / "adapter")


def check_merged(base: Path, adapter: Path, merged: Mapping[str, Tensor]) -> LoraVector:
    """Checks every tensor of the base against peft's merged one, and that `tensors` are those that changed."""
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, locate(str(adapter)))
    restored = restore(checkpoint, vector)
    for name, info in checkpoint.tensors.items():
        weights = checkpoint.read(name).reshape(info.shape)
        expected = merged[vector.model.finetuned_name(name)]
        delta = delta_tensor(vector, name) if name in vector.tensors else torch.zeros_like(weights)
        torch.testing.assert_close(delta, expected - weights, rtol=1e-5, atol=4e-6)
        torch.testing.assert_close(
            restored[vector.model.finetuned_name(name)], expected, rtol=1e-6, atol=1e-6
        )
        assert (name in vector.tensors) == (not torch.equal(expected, weights))
    for name in vector.extras:
        assert torch.equal(restored[name], merged[name])
    assert list(vector.tensors) == sorted(vector.tensors)
    return vector


SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["first", "second"], "r": 2, "lora_alpha": 5},
    "rank-stabilized": {"target_modules": ["first"], "r": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["first", "second"],
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"block.first": 1, "first": 2},
        "alpha_pattern": {"^first": 7, r"block\..*": 11},
    },
    "stabilized-pattern": {"target_modules": ["first"], "use_rslora": True, "rank_pattern": {"first": 5}},
    "convolutions": {"target_modules": ["conv1", "conv2", "point", "conv3"], "r": 2},
    "embedding": {"target_modules": ["words"], "r": 2, "lora_alpha": 3},
    "biases-of-targets": {"target_modules": ["first"], "bias": "lora_only"},
    "all-biases": {"target_modules": ["first"], "bias": "all", "modules_to_save": ["head", "norm"]},
    "mica": {"target_modules": ["second"], "init_lora_weights": "mica", "r": 2},
    "orthogonal": {"target_modules": ["second"], "init_lora_weights": "orthogonal", "r": 2},
    "gaussian": {"target_modules": ["second", "words"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_lora_expands_to_what_peft_merges(
    settings: dict[str, Any], toy: Toy, base: Path, tmp_path: Path
) -> None:
    merged = adapt(toy, tmp_path / "adapter", **settings)
    check_merged(base, tmp_path / "adapter", merged)


def bert(kind: type[nn.Module], **settings: object) -> nn.Module:
    torch.manual_seed(2)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(
        BertConfig(**sizes, intermediate_size=12, max_position_embeddings=9, num_labels=3, **settings)
    )


def test_gpt2_stores_its_weights_transposed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=9, bos_token_id=0, eos_token_id=0
        )
    )
    model.save_pretrained(tmp_path / "base")
    merged = adapt(model, tmp_path / "adapter", r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert vector.tensors["transformer.h.0.attn.c_proj.weight"].shape == (8, 8)  # square: the flag decides
    assert vector.tensors["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)


def test_a_classifier_brings_its_head_and_its_biases(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["query", "word_embeddings"], "task_type": "SEQ_CLS", "bias": "lora_only"}
    merged = adapt(model, tmp_path / "adapter", **settings, r=2)
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert list(vector.tensors) == [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.encoder.layer.0.attention.self.query.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert vector.model.adapter == "hf-sequence-classification"
    assert vector.model.config == {}
    assert not vector.extras


def test_a_base_without_the_model_prefix_is_found(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.bert.save_pretrained(tmp_path / "base")
    merged = adapt(model, tmp_path / "adapter", r=2, target_modules=["query"], task_type="SEQ_CLS")
    vector = check_merged(tmp_path / "base", tmp_path / "adapter", merged)
    assert (vector.model.base_prefix, vector.model.prefix) == ("", "bert.")
    assert list(vector.tensors) == ["encoder.layer.0.attention.self.query.weight"]
    assert list(vector.extras) == ["classifier.bias", "classifier.weight"]
    assert len(vector.notes) == 1
    edit_config(tmp_path / "adapter", modules_to_save=None)  # as old releases of peft wrote it
    assert LoraVector(vector.base, locate(str(tmp_path / "adapter"))).extras == vector.extras


def test_an_adapter_without_the_model_prefix_of_the_base_is_found(tmp_path: Path) -> None:
    model = bert(BertForSequenceClassification)
    model.save_pretrained(tmp_path / "base")
    adapt(model.bert, tmp_path / "adapter", r=2, target_modules=["query"], modules_to_save=["pooler"])
    vector = LoraVector(open_checkpoint(str(tmp_path / "base")), locate(str(tmp_path / "adapter")))
    assert (vector.model.base_prefix, vector.model.prefix) == ("bert.", "")
    assert list(vector.tensors) == [
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
    ]


def test_a_delta_is_summed_exactly_and_rounded_once(base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    a = torch.tensor([[1 / 3] * 6, [-1 / 3] * 5 + [2.0**-30]])
    b = torch.tensor([[1.0, 1.0]] * 8)
    root = "base_model.model.first.lora_"
    edit_weights(adapter, lambda tensors: tensors.update({f"{root}A.weight": a, f"{root}B.weight": b}))
    edit_config(adapter, lora_alpha=0.2)
    vector = LoraVector(checkpoint, locate(str(adapter)))
    third = float(np.float32(1 / 3))
    expected = np.array([0, 0, 0, 0, 0, (third + 2.0**-30) * 0.1] * 8, np.float32)
    assert np.concatenate(list(vector.blocks("first.weight"))).tobytes() == expected.tobytes()


def test_a_delta_depends_on_neither_blocks_nor_threads(
    toy: Toy, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["words", "first", "second", "conv2", "conv3"]
    adapt(toy, tmp_path / "adapter", r=3, target_modules=names, modules_to_save=["head"])
    vector = LoraVector(open_checkpoint(str(base)), locate(str(tmp_path / "adapter")))
    threads = torch.get_num_threads()
    seen = []
    try:
        for count, block, tile in ((1, 1 << 20, 1 << 15), (2, 1 << 20, 5), (1, 7, 1 << 15), (2, 1, 11)):
            torch.set_num_threads(count)
            use_small_blocks(monkeypatch, block)
            monkeypatch.setattr(lora, "TILE_ENTRIES", tile)
            blocks = {name: list(vector.blocks(name)) for name in vector.tensors}
            assert all(len(part) == block for parts in blocks.values() for part in parts[:-1])
            seen.append({name: np.concatenate(parts).tobytes() for name, parts in blocks.items()})
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_whole_tensors_are_exact_and_targets_need_no_correction(toy: Toy, base: Path, tmp_path: Path) -> None:
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["second"], modules_to_save=["head"])
    saved = torch.tensor([[1e-9, 3e7] * 4] * 3)
    path = "base_model.model.head.weight"
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({path: saved}))
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, locate(str(tmp_path / "adapter")))
    assert len(vector.exact("head.weight")[0])
    assert not len(vector.exact("block.second.weight")[0])
    assert torch.equal(restore(checkpoint, vector)["head.weight"], saved)


def test_a_vector_knows_its_base_and_counts_all_of_its_tensors(toy: Toy, base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, locate(str(adapter)), Selection(exclude=("words.*",)))
    assert vector.source == str(adapter)
    assert vector.identity() == identify(checkpoint)
    assert vector.parameters == sum(parameter.numel() for parameter in toy.parameters()) - 11 * 6
    assert list(vector.tensors) == ["block.first.weight", "first.weight"]
    assert vector.tensors["first.weight"].dtype == "F32"


def test_a_selection_matches_the_names_of_the_base(toy: Toy, base: Path, tmp_path: Path) -> None:
    adapt(toy, tmp_path / "adapter", r=2, target_modules=["first", "second"], modules_to_save=["head"])
    checkpoint = open_checkpoint(str(base))
    chosen = LoraVector(
        checkpoint, locate(str(tmp_path / "adapter")), Selection(("block.*",), ("*.second.*",))
    )
    assert list(chosen.tensors) == ["block.first.weight"]
    assert chosen.parameters == 64 + 8
    nothing = refusal(base, tmp_path / "adapter", Selection(exclude=("*",)))
    assert nothing == "ADAPTER: no tensor of the base BASE is selected"


def test_a_head_that_the_base_lacks_is_an_extra_unless_it_is_excluded(
    toy: Toy, base: Path, tmp_path: Path
) -> None:
    wider = copy.deepcopy(toy)
    wider.added = nn.Linear(8, 2)
    merged = adapt(wider, tmp_path / "adapter", r=2, target_modules=["first"], modules_to_save=["added"])
    checkpoint = open_checkpoint(str(base))
    vector = LoraVector(checkpoint, locate(str(tmp_path / "adapter")))
    assert list(vector.extras) == ["added.bias", "added.weight"]
    assert vector.extra("added.weight").data == merged["added.weight"].numpy().tobytes()
    assert not LoraVector(
        checkpoint, locate(str(tmp_path / "adapter")), Selection(exclude=("added.*",))
    ).extras


def test_an_embedding_that_peft_saved_with_its_weight_is_the_sum_of_both(
    toy: Toy, base: Path, tmp_path: Path
) -> None:
    merged = adapt(toy, tmp_path / "adapter", r=2, target_modules=["words"])
    saved = toy.words.weight.detach().clone()
    name = "base_model.model.words.base_layer.weight"  # written for 'embed_tokens' and 'lm_head'
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({name: saved}))
    check_merged(base, tmp_path / "adapter", merged)
    edit_weights(tmp_path / "adapter", lambda tensors: tensors.update({name: saved + 1}))
    check_merged(base, tmp_path / "adapter", merged | {"words.weight": merged["words.weight"] + 1})


def test_an_adapter_of_torch_save_is_read_through_weights_only(base: Path, adapter: Path) -> None:
    checkpoint = open_checkpoint(str(base))
    expected = delta_tensor(LoraVector(checkpoint, locate(str(adapter))), "first.weight")
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    assert torch.equal(delta_tensor(LoraVector(checkpoint, locate(str(adapter))), "first.weight"), expected)
    torch.save({"run": print}, adapter / "adapter_model.bin")
    assert refusal(base, adapter).startswith("ADAPTER/adapter_model.bin: ")


def test_other_adapters_in_the_folder_are_named_as_left_out(toy: Toy, base: Path, tmp_path: Path) -> None:
    save_small_adapter(toy, tmp_path / "adapter")
    save_small_adapter(toy, tmp_path / "adapter" / "other")
    vector = LoraVector(open_checkpoint(str(base)), locate(str(tmp_path / "adapter")))
    assert vector.notes == [f"{tmp_path / 'adapter'}: its other adapters are left out: other"]
