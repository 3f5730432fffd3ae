"""A switched model that serves: heads by row, several threads, generation, and a zoo that changes meanwhile."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.checkpoints import memory_pair, message
from support.tiny_language_models import language_model
from support.tiny_models import (
    TASKS,
    changed_state,
    make_artifact,
    pack,
    save_state,
    state_artifacts,
    text_toy,
    tiny_state,
)
from torch import nn

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import read_examples, task_file
from flexswitch.merging.routing.index_build import Settings
from flexswitch.merging.routing.indexing import Request, index_zoo
from flexswitch.merging.routing.router import open_router
from flexswitch.merging.switching.batch_plan import batch_plan
from flexswitch.merging.switching.cost_model import CostModel, Costs
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.switching.zoo_router import Routing
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.zoos.pack import Form, change_zoo


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return text_toy(tmp_path_factory.mktemp("toy"), test_count=1)


def classifier(toy, task):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(toy.finetuned[task]).eval()


def base_classifier(toy):
    """Returns the base under a head that no task has."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(toy.base, num_labels=2).eval()


BATCH = {"input_ids": torch.randint(5, 20, (6, 7), generator=torch.Generator().manual_seed(0))}
BATCH["attention_mask"] = torch.ones_like(BATCH["input_ids"])


def restored_logits(toy, zoo, task, row):
    module = classifier(toy, task)
    state = dict(restore(str(toy.base), zoo[task]))
    module.load_state_dict({name: state.get(name, tensor) for name, tensor in module.state_dict().items()})
    with torch.no_grad():
        return module(**{name: tensor[row : row + 1] for name, tensor in BATCH.items()}).logits[0]


@pytest.mark.parametrize("engine", ["fused", "merged", "grouped"])
def test_each_row_is_answered_under_the_head_of_its_largest_weight_or_the_callers(toy, engine):
    zoo = open_zoo(toy.zoo)
    model = SwitchedModel(base_classifier(toy), zoo, engine=engine)
    assert model.tasks == list(TASKS)
    order = [0, 1, 2, 2, 1, 0]
    found = model(BATCH, weights=torch.eye(3)[order]).logits
    widest = max(len(restored_logits(toy, zoo, task, 0)) for task in TASKS)
    assert found.shape == (6, widest)
    for row, number in enumerate(order):
        expected = restored_logits(toy, zoo, list(TASKS)[number], row)
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert (found[row, len(expected) :] == -torch.inf).all()
    named = model(BATCH, weights=torch.eye(3)[[0] * 6], heads=["birds"] * 6).logits
    assert torch.isfinite(named).sum() == 6 * len(restored_logits(toy, zoo, "birds", 0))


def test_heads_are_refused_where_they_are_unknown_too_few_or_not_there(toy):
    zoo = open_zoo(toy.zoo)
    model, weights = SwitchedModel(base_classifier(toy), zoo), torch.eye(3)[[0] * 6]
    assert "heads: no task is named 'bird'" in message(
        InputError, lambda: model(BATCH, weights=weights, heads=["bird"] * 6)
    )
    assert message(InputError, lambda: model(BATCH, weights=weights, heads=["birds"])) == (
        "heads names 1 tasks, expected 6, one for each row"
    )
    headless = SwitchedModel(base_classifier(toy), zoo, heads=False)
    assert headless(BATCH, weights=weights).logits.shape == (6, 2)
    assert message(InputError, lambda: headless(BATCH, weights=weights, heads=["birds"] * 6)) == (
        "heads= names tasks, but the module has no layer that the tasks have heads for"
    )


def test_a_head_that_is_not_linear_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, rows):
            return self.scale(self.body(rows))

    module = Scaled()
    base = {name: tensor.detach() for name, tensor in module.body.state_dict(prefix="body.").items()}
    finetuned = changed_state(base, 1) | {"scale.weight": torch.ones(3), "scale.bias": torch.zeros(3)}
    vectors = {"task": memory_pair(base, finetuned)}
    assert message(InputError, lambda: SwitchedModel(module, vectors)) == (
        "finetuned: its own tensor 'scale.bias' belongs to the module's 'scale', a LayerNorm; only linear heads can "
        "differ from row to row: give heads=False"
    )
    assert SwitchedModel(module, vectors, heads=False)(torch.randn(2, 3), weights=torch.ones(2, 1)).shape == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("engine", "cache"), [("fused", 1), ("grouped", 1), ("auto", 1), ("merged", 60_000), ("merged", 1 << 20)]
)
def test_several_threads_get_the_answers_that_one_gets(toy, engine, cache):
    model = SwitchedModel(base_classifier(toy), open_zoo(toy.zoo), engine=engine, cache_bytes=cache)
    generator = torch.Generator().manual_seed(1)
    asked = [torch.rand(6, 3, generator=generator).round(decimals=1) for _ in range(12)]
    expected = [model(BATCH, weights=weights).logits for weights in asked]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda weights: model(BATCH, weights=weights).logits, asked))
            for one, other in zip(found, expected, strict=True):
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


def test_an_unknown_engine_is_named():
    assert "no engine is named 'fast'" in message(
        UsageError, lambda: SwitchedModel(nn.Linear(2, 2), {}, engine="fast")
    )


def test_few_large_groups_are_answered_by_held_weights_and_many_small_ones_by_one_pass(toy):
    model = SwitchedModel(base_classifier(toy), open_zoo(toy.zoo))
    deltas, fused = model._loaded.deltas, model._loaded.fused
    costs = Costs(new_mixture=150.0, mixture=20.0, task_calls=0.0, mixture_calls=0.0)
    cost_model = CostModel(fused.matrices, 8, 0, costs)

    def prefers_fused(weights, mask=None):
        return cost_model.choose(batch_plan(weights.numpy(), deltas, None, mask), tokens=30).fused

    one_each = torch.eye(3)[torch.arange(30) % 3]
    assert prefers_fused(one_each)  # their weights would have to be made first
    assert not prefers_fused(one_each)
    assert prefers_fused(one_each, mask=np.arange(30)[None] < np.ones((30, 1)))  # padding is not computed
    assert prefers_fused(torch.rand(6, 3, generator=torch.Generator().manual_seed(0)))


# --- routing by the zoo itself ----------------------------------------------------------------------------


def indexed(toy, folder, features, **settings):
    """Returns a copy of the toy's zoo, indexed."""
    zoo = shutil.copytree(toy.zoo, folder / "zoo")
    chosen = Settings(per_task=12, seed=0, normalise="centred", rank=None)
    index_zoo(
        Request(zoo, str(toy.base), toy.data, features, "float32", chosen, None, "cpu"),
        True,
        lambda task: None,
    )
    return open_zoo(zoo)


@pytest.mark.parametrize("features", ["input", "layer:1", "pooled", "average:layer:1", "shape+layers:0+1"])
def test_without_weights_the_zoos_index_chooses_by_the_wrapped_modules_own_states(toy, tmp_path, features):
    zoo = indexed(toy, tmp_path, features)
    adapter = get_adapter(open_checkpoint(str(toy.base)), "hf-sequence-classification")
    samples = read_examples(task_file(toy.data, "birds", "train"), labelled=False).take(np.arange(9))
    batch = adapter.batch(samples.inputs)
    expected = open_router(zoo, adapter, None, 3, "kernel", "cpu")
    asked = expected.index.weights(expected.source.of(batch, samples.inputs)).weights
    columns = [expected.index.tasks.index(task) for task in zoo]
    model = SwitchedModel(base_classifier(toy), zoo, routing=Routing(3, "kernel", mix="root"))
    found = model(batch, texts=samples.inputs).logits
    torch.testing.assert_close(
        found, model(batch, weights=asked[:, columns].sqrt()).logits, rtol=1e-4, atol=1e-4
    )
    assert len(asked.unique(dim=0)) > 1


def test_an_index_of_the_texts_shapes_needs_the_texts(toy, tmp_path):
    zoo = indexed(toy, tmp_path, "shape+input")
    model = SwitchedModel(base_classifier(toy), zoo)
    assert "give texts=, one for each row, or weights=" in message(InputError, lambda: model(BATCH))
    wrong = message(InputError, lambda: model.route(BATCH, texts=["one"]))
    assert wrong == "texts= holds 1 texts, expected 6, one for each row"
    shouted = model.route(BATCH, texts=["LOUD, 12 !"] * 6)
    assert not torch.equal(shouted, model.route(BATCH, texts=["quiet"] * 6))
    assert model(BATCH, weights=torch.eye(3)[[0] * 6]).logits.shape[0] == 6


def test_the_callers_router_gets_the_texts_where_they_are_given(toy):
    received = []

    def router(batch, *texts):
        received.append(texts)
        return torch.eye(3)[[0] * 6]

    model = SwitchedModel(base_classifier(toy), open_zoo(toy.zoo), router)
    model(BATCH)
    model(BATCH, texts=["a"] * 6)
    assert received == [(), (["a"] * 6,)]


def test_an_index_that_lacks_a_task_is_refused_only_when_it_is_used(toy, tmp_path):
    zoo = indexed(toy, tmp_path, "input")
    artifact = make_artifact(toy.base, toy.finetuned["birds"], tmp_path / "more.fsw")
    change_zoo(zoo.path, [artifact.path], [], Form(), None, False, lambda task: None)
    model = SwitchedModel(base_classifier(toy), open_zoo(zoo.path))
    assert model(BATCH, weights=torch.eye(4)[[0] * 6]).logits.shape[0] == 6
    assert "has no exemplars of the task 'more'" in message(InputError, lambda: model(BATCH))


def test_an_index_of_a_files_features_is_refused_for_a_batch(toy, tmp_path):
    path = tmp_path / "features.safetensors"
    files = {task: task_file(toy.data, task, "train") for task in TASKS}
    counts = {task: len(read_examples(file, labelled=False)) for task, file in files.items()}
    save_state(path, {f"{task}.train": torch.randn(count, 3) for task, count in counts.items()})
    model = SwitchedModel(base_classifier(toy), indexed(toy, tmp_path, str(path)))
    assert "give weights=, or a router" in message(InputError, lambda: model(BATCH))
