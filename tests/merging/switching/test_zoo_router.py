"""Routing by the zoo's query index: a batch is asked by the wrapped module's own hidden states."""

import shutil

import numpy as np
import pytest
import torch
from support.checkpoints import message
from support.switching import BATCH, base_classifier
from support.tiny_models import (
    TASKS,
    make_artifact,
    save_state,
)

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import read_examples, task_file
from flexswitch.merging.models.runner import Runner
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import index_zoo
from flexswitch.merging.routing.router import open_router
from flexswitch.merging.routing.voting_options import VotingOptions
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.zoos.pack import Form, change_zoo


def indexed(text, folder, features, **settings):
    """Returns a copy of the text's zoo, indexed."""
    zoo = shutil.copytree(text.zoo, folder / "zoo")
    options = IndexOptions(features, per_task=12, metric="euclidean")
    index_zoo(zoo, str(text.base), text.data, options, True, lambda task: None)
    return open_zoo(zoo)


@pytest.mark.parametrize("features", ["input", "layer:1", "pooled", "average:layer:1", "shape+layers:0+1"])
def test_without_weights_the_zoos_index_chooses_by_the_wrapped_modules_own_states(text, tmp_path, features):
    zoo = indexed(text, tmp_path, features)
    adapter = get_adapter(open_checkpoint(str(text.base)), "hf-sequence-classification")
    samples = read_examples(task_file(text.data, "birds", "train"), labelled=False).take(np.arange(9))
    batch = adapter.batch(samples.inputs)
    voting = VotingOptions(3, "kernel", mix="root")
    expected = open_router(zoo, Runner(adapter), None, voting)
    asked = expected.index.weights(expected.source.of(batch, samples.inputs)).weights
    columns = [expected.index.tasks.index(task) for task in zoo]
    model = SwitchedModel(base_classifier(text), zoo, routing=voting)
    found = model(batch, texts=samples.inputs).logits
    torch.testing.assert_close(
        found, model(batch, weights=asked[:, columns].sqrt()).logits, rtol=1e-4, atol=1e-4
    )
    assert len(asked.unique(dim=0)) > 1


def test_an_index_of_the_texts_shapes_needs_the_texts(text, tmp_path):
    zoo = indexed(text, tmp_path, "shape+input")
    model = SwitchedModel(base_classifier(text), zoo)
    assert "give texts=, one for each row, or weights=" in message(InputError, lambda: model(BATCH))
    wrong = message(InputError, lambda: model.route(BATCH, texts=["one"]))
    assert wrong == "texts= holds 1 texts, expected 6, one for each row"
    shouted = model.route(BATCH, texts=["LOUD, 12 !"] * 6)
    assert not torch.equal(shouted, model.route(BATCH, texts=["quiet"] * 6))
    assert model(BATCH, weights=torch.eye(3)[[0] * 6]).logits.shape[0] == 6


def test_the_callers_router_gets_the_texts_where_they_are_given(text):
    received = []

    def router(batch, *texts):
        received.append(texts)
        return torch.eye(3)[[0] * 6]

    model = SwitchedModel(base_classifier(text), open_zoo(text.zoo), router)
    model(BATCH)
    model(BATCH, texts=["a"] * 6)
    assert received == [(), (["a"] * 6,)]


def test_an_index_that_lacks_a_task_is_refused_only_when_it_is_used(text, tmp_path):
    zoo = indexed(text, tmp_path, "input")
    artifact = make_artifact(text.base, text.finetuned["birds"], tmp_path / "more.fsw")
    change_zoo(zoo.path, [artifact.path], [], Form(), None, False, lambda task: None)
    model = SwitchedModel(base_classifier(text), open_zoo(zoo.path))
    assert model(BATCH, weights=torch.eye(4)[[0] * 6]).logits.shape[0] == 6
    assert "has no exemplars of the task 'more'" in message(InputError, lambda: model(BATCH))


def test_an_index_of_a_files_features_is_refused_for_a_batch(text, tmp_path):
    path = tmp_path / "features.safetensors"
    files = {task: task_file(text.data, task, "train") for task in TASKS}
    counts = {task: len(read_examples(file, labelled=False)) for task, file in files.items()}
    save_state(path, {f"{task}.train": torch.randn(count, 3) for task, count in counts.items()})
    model = SwitchedModel(base_classifier(text), indexed(text, tmp_path, str(path)))
    assert "give weights=, or a router" in message(InputError, lambda: model(BATCH))
