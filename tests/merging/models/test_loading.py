"""Weights are loaded under names with a prefix, tied names, and the names that transformers saves."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.adapter_bases import TEXT, adapter_of, change_config, save_bases
from support.checkpoints import message
from support.tiny_models import save_state, write_tokenizer
from torch import nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the text base that a test may change."""
    return shutil.copytree(bases["text"], tmp_path / "base")


def nested_module():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})


@pytest.mark.parametrize(("given", "held"), [("", ""), ("model.", ""), ("", "model.")])
def test_a_prefix_on_either_side_is_found(given, held):
    module = nested_module()
    names = [name for name in module.state_dict() if name.startswith(("body", "norm"))]
    outer = nn.ModuleDict({held.rstrip("."): module}) if held else module
    state = {f"{given}{name}": torch.full_like(module.state_dict()[name], 7.0) for name in names}
    assert names_inside(outer, list(state)) == {f"{given}{name}": f"{held}{name}" for name in names}
    load_weights(outer, state | {"other.weight": torch.zeros(1)}, "there")
    assert all((tensor == 7).all() for tensor in module.state_dict().values())


def test_a_tensor_that_the_module_needs_is_named():
    module = nested_module()
    state = dict(module.state_dict())
    del state["norm.bias"]
    assert message(InputError, lambda: load_weights(module, state, "there")) == (
        "there: lacks 'norm.bias', which the model of its config.json has"
    )


def test_a_base_with_tied_tensors_loads_from_any_one_of_their_names(tmp_path):
    from transformers import BartConfig, BartModel

    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=40, d_model=8, max_position_embeddings=16, **layers, **heads)
    model = BartModel(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert "encoder.embed_tokens.weight" not in load_file(tmp_path / "model.safetensors")
    found = adapter_of(TEXT, tmp_path).encoder()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("wrapped", [False, True])
def test_saved_names_are_converted_to_the_names_in_the_model(bases, wrapped):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(bases["image"], add_pooling_layer=False)
    saved = load_file(bases["image"] / "model.safetensors")
    module, prefix = (nn.ModuleDict({"encoder": model}), "encoder.") if wrapped else (model, "")
    found = names_inside(module, list(saved))
    assert set(found.values()) == {prefix + name for name in model.state_dict()}
    for name, inside in found.items():
        assert torch.equal(saved[name], module.state_dict()[inside])
    own = list(module.state_dict())
    assert names_inside(module, own) == {name: name for name in own}


def test_an_encoder_saved_in_half_precision_runs_in_float32(base):
    state = load_file(base / "model.safetensors")
    save_state(base / "model.safetensors", {name: tensor.bfloat16() for name, tensor in state.items()})
    change_config(base, dtype="bfloat16")
    adapter = adapter_of(TEXT, base)
    for module in (adapter.encoder(), adapter.model({"id2label": {"0": "a", "1": "b", "2": "c"}}, {})):
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
