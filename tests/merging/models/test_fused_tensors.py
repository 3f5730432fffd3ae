"""Experts that files have apart, in modules that have them fused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import memory_pair, message
from support.tiny_models import changed_state

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.fused_tensors import places_inside
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.switching.switched_model import SwitchedModel


def mixtral(seed: int) -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=16,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    mixtral(1).save_pretrained(path)  # type: ignore[operator]
    return path


def test_tensors_of_a_file_fill_the_fused_ones(folder: Path) -> None:
    state, module, expected = load_file(folder / "model.safetensors"), mixtral(2), mixtral(1).state_dict()
    assert not any("gate_up_proj" in name for name in state)
    load_weights(module, state, "the file")
    found = module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    places = places_inside(module, {name: tuple(tensor.shape) for name, tensor in state.items()})
    for name, place in places.items():
        assert torch.equal(place.of(found[place.name]), state[name].reshape(-1))
    assert places.keys() == state.keys()


def test_a_file_that_lacks_an_expert_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state[next(name for name in state if "experts.1." in name)]
    found = message(InputError, lambda: load_weights(mixtral(2), state, "the file"))
    assert found.startswith("the file: lacks 'model.layers.0.mlp.experts.")
    assert found.endswith("_proj', which the model of its config.json has")


def test_experts_are_checked_against_the_base(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    vectors = {"task": memory_pair(state, changed_state(state, 5))}
    module = mixtral(1)
    SwitchedModel(module, vectors, base=folder)
    with torch.no_grad():
        module.state_dict()["model.layers.0.mlp.experts.down_proj"][2, 1, 3] += 1
    found = message(InputError, lambda: SwitchedModel(module, vectors, base=folder))
    assert "experts.2.w2.weight' differs from that of" in found
