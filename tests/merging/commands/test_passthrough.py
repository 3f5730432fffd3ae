"""`merge --config` with merge_method: passthrough: a model made of the layers of others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.checkpoints import message
from transformers import GPT2Config, GPT2LMHeadModel

from flexswitch.codecs.errors import InputError
from flexswitch.merging.commands.merge_config import merge_config

CONFIG = {"num_hidden_layers": 3, "hidden_size": 4, "layer_types": ["x", "y", "z"], "eos_token_id": [1, 2, 3]}
TWO = (
    "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [1, 3]}]\n"
    "merge_method: passthrough\n"
)


def write_model(folder: Path, seed: int, **config: Any) -> None:
    generator = np.random.default_rng(seed)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(3) for part in ("attn", "mlp")]
    folder.mkdir()
    save_file(
        {name: generator.normal(size=(6, 4)).astype(np.float32) for name in names},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(CONFIG | config))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, seed)
    return {name: dict(load_file(f"{name}/model.safetensors")) for name in "ab"}


def stacked(text: str) -> dict[str, np.ndarray]:
    Path("merge.yaml").write_text(text)
    merge_config("merge.yaml", "out", overwrite=True)
    return dict(load_file("out/model.safetensors"))


def test_layers_are_taken_in_order_with_the_first_embeddings_and_the_last_head(
    models: dict[str, dict[str, np.ndarray]],
) -> None:
    found = stacked(TWO)
    a, b = models["a"], models["b"]
    expected = {
        "model.embed_tokens.weight": a["model.embed_tokens.weight"],
        "model.norm.weight": b["model.norm.weight"],
        "lm_head.weight": b["lm_head.weight"],
    }
    for place, (model, layer) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        for part in ("attn", "mlp"):
            expected[f"model.layers.{place}.{part}.weight"] = model[f"model.layers.{layer}.{part}.weight"]
    assert sorted(found) == sorted(expected)
    assert all(np.array_equal(found[name], weights) for name, weights in expected.items())
    config = json.loads(Path("out/config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (4, ["x", "y", "y", "z"])
    assert config["eos_token_id"] == [1, 2, 3]
    assert "slices: a, layers 0 to 1; b, layers 1 to 2" in Path("out/README.md").read_text()


def test_the_head_of_gpt_neox_is_the_last_models_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
        *(f"gpt_neox.layers.{layer}.w" for layer in range(3)),
    ]
    for number, model in enumerate("ab"):
        Path(model).mkdir()
        state = {name: np.full((2, 2), number + place / 8, np.float32) for place, name in enumerate(names)}
        save_file(state, f"{model}/model.safetensors")
        Path(f"{model}/config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    found = stacked(TWO)
    assert [float(found[name].max()) for name in names[:2]] == [0, 1 + 1 / 8]


def test_the_number_of_layers_is_told_by_the_name_that_the_models_have(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    saved = tmp_path / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(saved)
    (tmp_path / "merge.yaml").write_text(
        f"slices:\n- sources: [{{model: {saved}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {saved}, layer_range: [1, 2]}}]\nmerge_method: passthrough\n"
    )
    merge_config(str(tmp_path / "merge.yaml"), str(tmp_path / "out"))
    whole, found = (GPT2LMHeadModel.from_pretrained(path).transformer for path in (saved, tmp_path / "out"))
    for own, layer in zip(found.h, [0, 1, 1], strict=True):
        expected = whole.h[layer].state_dict()
        assert all(torch.equal(weights, expected[name]) for name, weights in own.state_dict().items())


def test_scales_are_those_of_the_source_before_the_slice_and_of_all(
    models: dict[str, dict[str, np.ndarray]],
) -> None:
    found = stacked(
        "slices:\n"
        "- sources: [{model: a, layer_range: [0, 1], parameters: {scale: [{filter: attn, value: 0}, {value: 3}]}}]\n"
        "- sources: [{model: a, layer_range: [1, 2]}]\n  parameters: {scale: 0.5}\n"
        "- sources: [{model: b, layer_range: [2, 3]}]\n"
        "merge_method: passthrough\nparameters: {scale: 2}\n"
    )
    a, b = models["a"], models["b"]
    for name, factor, weights in (
        ("model.layers.0.attn.weight", 0, a["model.layers.0.attn.weight"]),
        ("model.layers.0.mlp.weight", 3, a["model.layers.0.mlp.weight"]),
        ("model.layers.1.attn.weight", 0.5, a["model.layers.1.attn.weight"]),
        ("model.layers.2.mlp.weight", 2, b["model.layers.2.mlp.weight"]),
        ("lm_head.weight", 2, b["lm_head.weight"]),
    ):
        assert np.array_equal(found[name], factor * weights), name


SLICE = "merge_method: passthrough\nslices:\n- sources: "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge_method: passthrough\nmodels: [{model: a}]\n", "merge.yaml: models is not handled for passthrough"),
        ("merge_method: passthrough\n", "merge.yaml: passthrough needs slices, each of one model and its layer_range"),
        (f"{SLICE}[{{model: a, layer_range: [0, 1], parameters: [1]}}]\n", "merge.yaml: parameters: expected names and values"),
        (f"{SLICE}[]\n", "merge.yaml: slices: {'sources': []}: expected sources with one model"),
        (f"{SLICE}[{{model: a, layer_range: [0, 4]}}]\n", "merge.yaml: slices: layer_range [0, 4] of a, expected [FROM, TO] within [0, 3]"),
        (f"{SLICE}[{{model: a, layer_range: [2, 2]}}]\n", "merge.yaml: slices: layer_range [2, 2] of a, expected"),
        (f"{SLICE}[{{model: a}}]\n", "merge.yaml: slices: layer_range None of a, expected"),
        (f"{SLICE}[{{model: a, layer_range: [0, 1], residual_scale: 2}}]\n", "merge.yaml: slices: residual_scale is not handled"),
        (f"{SLICE}[{{model: a, layer_range: [0, 1], parameters: {{weight: 2}}}}]\n", "merge.yaml: weight is not handled for passthrough, only scale"),
        (f"{SLICE}[{{model: a, layer_range: [0, 1], parameters: {{scale: [0, 1]}}}}]\n", "merge.yaml: scale: [0, 1]: expected a number"),
        (f"{SLICE}[{{model: a, layer_range: [0, 1]}}]\ndtype: int4\n", "merge.yaml: dtype int4, expected one of float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(models: Any, text: str, expected: str) -> None:
    assert message(InputError, lambda: stacked(text)).startswith(expected)
    assert not Path("out").exists()


def test_models_of_other_shapes_and_of_several_stacks_are_refused(models: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "wide", 3, hidden_size=8)
    assert message(InputError, lambda: stacked(TWO.replace("model: b", "model: wide"))) == (
        "merge.yaml: a and wide have the hidden_size 4 and 8 in their config.json; their layers do not fit together"
    )
    write_model(tmp_path / "deep", 4, num_hidden_layers=5)
    assert message(InputError, lambda: stacked(TWO.replace("model: b", "model: deep"))) == (
        "deep: expected one stack of 5 layers, as num_hidden_layers of its config.json says, found 1 of at most 3"
    )


def test_the_output_has_the_dtype_that_is_asked_for(models: Any) -> None:
    stacked_names = stacked(f"{TWO}dtype: float16\n")
    assert {each.dtype for each in stacked_names.values()} == {np.dtype(np.float16)}
