"""A switched model that serves: several threads, generation, and a zoo that changes meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.checkpoints import memory_pair, message
from support.switching import BATCH, base_classifier
from support.tiny_language_models import language_model
from support.tiny_models import (
    changed_state,
    pack,
    state_artifacts,
    tiny_state,
)
from torch import nn

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.zoos.pack import Form, change_zoo


@pytest.mark.parametrize(
    ("engine", "cache"), [("fused", 1), ("grouped", 1), ("auto", 1), ("merged", 60_000), ("merged", 1 << 20)]
)
@pytest.mark.deep
def test_several_threads_get_the_answers_that_one_gets(text, engine, cache):
    model = SwitchedModel(base_classifier(text), open_zoo(text.zoo), engine=engine, cache_bytes=cache)
    generator = torch.Generator().manual_seed(1)
    asked = [torch.rand(6, 3, generator=generator).round(decimals=1) for _ in range(8)]
    expected = [model(BATCH, weights=weights).logits for weights in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda weights: model(BATCH, weights=weights).logits, 2 * asked))
    for one, other in zip(found, 2 * expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def language_tasks(kind, count=3):
    torch.manual_seed(0)
    module = language_model(kind).eval()
    base = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    states = [changed_state(base, number, 0.5) for number in range(count)]
    return (
        module,
        base,
        states,
        {f"task{number}": memory_pair(base, state) for number, state in enumerate(states)},
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 2])
def test_each_sequence_is_generated_under_the_weights_of_its_prompt(kind, beams):
    module, base, states, vectors = language_tasks(kind)
    model = SwitchedModel(module, vectors)
    prompts = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 5], [5, 6, 7]]),
        "attention_mask": torch.ones(3, 3, dtype=torch.long),
    }
    weights = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
    options = {
        "max_new_tokens": 5,
        "num_beams": beams,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    found = model.generate(prompts, weights=weights, **options)
    seen = set()
    for row, share in enumerate(weights.tolist()):
        own = {
            name: tensor
            + sum(part * (state[name] - tensor) for part, state in zip(share, states, strict=True))
            for name, tensor in base.items()
        }
        alone = language_model(kind).eval()
        alone.load_state_dict(own, strict=False)
        expected = alone.generate(**{name: part[row : row + 1] for name, part in prompts.items()}, **options)
        assert torch.equal(found[row], expected[0])
        seen.add(tuple(found[row].tolist()))
    assert len(seen) == 3  # the tasks do differ


def test_a_zoo_that_changes_is_picked_up_by_refresh(tmp_path):
    base = tiny_state()
    files = state_artifacts(tmp_path, ["one", "two", "three"])
    zoo = pack(tmp_path / "zoo", [files["one"], files["two"]])

    module = Named(base)
    model = SwitchedModel(module, zoo)
    assert model.tasks == ["one", "two"]
    change_zoo(zoo.path, [files["three"]], [], Form(), None, False, lambda task: None)
    assert model.tasks == ["one", "two"]
    model.refresh()
    assert model.tasks == ["one", "three", "two"]
    change_zoo(zoo.path, [], ["one"], Form(), None, False, lambda task: None)
    model.refresh()
    assert model.tasks == ["three", "two"]
    lone = SwitchedModel(module, {"one": open_zoo(zoo.path)["two"]})
    assert "this model was made without one" in message(InputError, lone.refresh)


class Named(nn.Module):
    """Holds a state dict whose names have dots."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            owner = self
            *path, last = name.split(".")
            for step in path:
                if step not in dict(owner.named_children()):
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))

    def forward(self, rows):
        return rows


MODULES = {
    "no forward": (lambda: nn.ModuleDict({"a": nn.Linear(2, 2)}), "a torch module with a forward method"),
    "a list": (lambda: nn.ModuleList([nn.Linear(2, 2)]), "a torch module with a forward method"),
    "traced": (
        lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)),
        "a module that is not compiled by torch.jit",
    ),
    "no values": (
        lambda: nn.Linear(2, 2, device="meta"),
        "a module with its weights, not on the meta device",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("situation", MODULES)
def test_a_module_that_cannot_be_switched_is_refused(situation):
    make, wanted = MODULES[situation]
    assert message(UsageError, lambda: SwitchedModel(make(), {})).endswith(f", expected {wanted}")


def test_an_unknown_engine_is_named():
    assert "no engine is named 'fast'" in message(
        UsageError, lambda: SwitchedModel(nn.Linear(2, 2), {}, engine="fast")
    )
