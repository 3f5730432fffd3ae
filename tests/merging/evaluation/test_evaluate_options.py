"""The options of eval: limits, neighbours, features, adapters, engines, votes and snapping."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import message
from support.evaluations import (
    ALL,
    MODES,
    NEIGHBOURS,
    accuracies,
    copy_of,
    examples_of,
    index,
    indexed_toy,
    percent,
    request,
    scores_of,
)
from support.tiny_models import (
    TASKS,
    plain_predictions,
    save_state,
)

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.evaluation.methods import check_methods, score
from flexswitch.merging.evaluation.routed import batch_of
from flexswitch.merging.evaluation.setup import open_evaluation
from flexswitch.merging.evaluation.stream_weights import mixed_stream
from flexswitch.merging.routing.voting_options import VotingOptions


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return indexed_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copied(toy, tmp_path):
    return copy_of(toy, tmp_path)


@pytest.fixture(scope="module")
def rows(toy):
    return scores_of(toy, ALL, finetuned=toy.pairs())


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_a_limit_takes_the_first_examples_of_each_task(toy, limit):
    found = scores_of(toy, ["individual", "auto-switch"], ["per-sample"], finetuned=toy.pairs(), limit=limit)
    for task, path in toy.finetuned.items():
        inputs, labels = (each[:limit] for each in examples_of(toy, task))
        expected = percent(plain_predictions(path, toy.base, inputs), labels)
        assert found["individual"].values[task] == expected


def test_the_default_number_of_neighbours_is_the_adapters(toy, rows):
    methods, modes = ["auto-switch"], ["per-sample"]
    given = scores_of(toy, methods, modes, voting=VotingOptions(NEIGHBOURS))
    assert accuracies(given) == {name: rows[name].values for name in given}
    one = open_evaluation(request(toy, methods=methods, voting=VotingOptions(1)))
    samples = mixed_stream([30, 30, 30])
    routed = one.router.choose(samples, batch_of(one.task_models, samples))
    assert set(np.unique(routed.shares).tolist()) == {0.0, 1.0}


@pytest.fixture
def with_file(copied, tmp_path):
    """The toy indexed with features of a file, one-hot of the task with some noise, and that file."""
    tensors = {}
    for number, task in enumerate(TASKS):
        for split, count in (("train", 20), ("test", 30)):
            noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(number))
            tensors[f"{task}.{split}"] = torch.eye(3)[number] + 0.01 * noise
    path = save_state(tmp_path / "features.safetensors", tensors)
    index(copied, features=path)
    return copied, path


@pytest.mark.parametrize("limit", [None, 4])
def test_features_of_a_file_are_taken_by_test_row_with_and_without_a_limit(with_file, limit):
    toy, path = with_file
    methods = ["t-switch", "auto-switch"]
    found = scores_of(toy, methods, ["per-sample"], features=path, limit=limit)
    routed = found["auto-switch (per-sample)"]
    assert routed.routing.accuracy == 100
    assert routed.values == found["t-switch"].values


def test_a_feature_file_is_given_exactly_if_the_zoo_was_indexed_with_one(with_file, toy):
    indexed, path = with_file
    methods = ["auto-switch"]
    assert message(InputError, lambda: open_evaluation(request(indexed, methods=methods))) == (
        f"{indexed.zoo}: was indexed with the features 'file'; give that file with --features"
    )
    assert message(InputError, lambda: open_evaluation(request(toy, methods=methods, features=path))) == (
        f"{toy.zoo}: was indexed with the features 'pooled'; leave out --features"
    )


def test_features_of_another_width_than_the_index_are_refused(with_file, tmp_path):
    toy, path = with_file
    wide = {name: torch.cat([tensor, tensor], 1) for name, tensor in load_file(path).items()}
    other = save_state(tmp_path / "wide.safetensors", wide)
    evaluation = open_evaluation(request(toy, methods=["auto-switch"], features=other))
    assert message(InputError, lambda: score(evaluation, "auto-switch", ["per-sample"])) == (
        "features of width 6, the query index holds width 3"
    )


OWN_ADAPTER = """
from flexswitch.merging.models.text_adapters import SequenceClassification

class Flipped(SequenceClassification):
    neighbours = 2
    def logits(self, model, batch):
        return -super().logits(model, batch)
"""


def test_the_given_adapter_replaces_the_zoos(toy, rows, tmp_path, monkeypatch):
    (tmp_path / "flipped_adapter.py").write_text(OWN_ADAPTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = scores_of(toy, ["t-switch"], adapter="python:flipped_adapter:Flipped")
    assert found["t-switch"].values["birds"] == pytest.approx(100 - rows["t-switch"].values["birds"])


def test_code_that_the_zoo_names_is_not_run(copied):
    document = json.loads((copied.zoo / ZOO_FILE).read_text()) | {"adapter": "python:os:getcwd"}
    (copied.zoo / ZOO_FILE).write_text(json.dumps(document))
    assert message(UsageError, lambda: open_evaluation(request(copied))) == (
        "the zoo names the code 'python:os:getcwd' as its adapter; if you trust it, give it as --adapter"
    )


@pytest.mark.parametrize("engine", ["fused", "grouped"])
def test_every_engine_gives_the_same_answers(toy, rows, engine):
    found = scores_of(toy, ["auto-switch"], MODES, engine=engine)
    assert accuracies(found) == {name: rows[name].values for name in found}


def test_snapped_weights_are_counted_and_lead_to_the_same_tasks(toy, rows):
    snapped = scores_of(toy, ["auto-switch"], ["per-sample"], voting=VotingOptions(snap=0.45))[
        "auto-switch (per-sample)"
    ].routing
    plain = rows["auto-switch (per-sample)"].routing
    assert plain.snapped == 0 < snapped.snapped
    assert snapped.entropy < plain.entropy
    assert np.array_equal(snapped.counts, plain.counts)


def test_root_weights_lead_to_the_same_tasks_with_other_answers(toy, rows):
    found = scores_of(toy, ["auto-switch"], ["per-sample"], voting=VotingOptions(mix="root"))[
        "auto-switch (per-sample)"
    ]
    plain = rows["auto-switch (per-sample)"]
    assert np.array_equal(found.routing.counts, plain.routing.counts)
    assert found.routing.entropy == plain.routing.entropy
    assert found.values != plain.values


def test_a_kernel_vote_gives_other_weights(toy, rows):
    found = scores_of(toy, ["auto-switch"], ["per-sample"], voting=VotingOptions(vote="kernel"))[
        "auto-switch (per-sample)"
    ].routing
    assert found.entropy != rows["auto-switch (per-sample)"].routing.entropy


def test_auto_flexswitch_needs_a_learned_metric(toy):
    zoo = open_zoo(toy.zoo)
    assert zoo.record.index.metric == "euclidean"
    expected = (
        f"--methods auto-flexswitch: no metric was learned when {toy.zoo} was indexed; index it again with "
        "--metric learned --overwrite"
    )
    assert message(InputError, lambda: check_methods(["auto-flexswitch"], MODES, zoo, False)) == expected
