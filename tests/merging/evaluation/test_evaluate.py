"""Evaluation, compared with plain loops over single samples, with transformers and state dicts."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
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
    WIDTH,
    Toy,
    bert_config,
    encoder_toy,
    image_toy,
    make_artifact,
    pack,
    pack_finetuned,
    plain_predictions,
    save_state,
    save_text_classifier,
    text_predictions,
)
from support.zoo_files import index_file, task_file

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.evaluation.methods import score
from flexswitch.merging.evaluation.scores import Score
from flexswitch.merging.evaluation.setup import open_evaluation
from flexswitch.merging.evaluation.stream_weights import batch_means, mixed_stream
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.task_vectors.restore import restore


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return indexed_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copied(toy, tmp_path):
    return copy_of(toy, tmp_path)


@pytest.fixture(scope="module")
def rows(toy):
    return scores_of(toy, ALL, finetuned=toy.pairs())


def classifier(task, state):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(bert_config(num_labels=TASKS[task]))
    model.load_state_dict(state)
    return model


def plain_mixture(toy, task, shares, vectors):
    """Returns θ + Σ w_k τ_k in float64 under a task's own head; vectors: task -> base name -> delta."""
    base = load_file(toy.base / "model.safetensors")
    state = {f"bert.{name}": tensor.double() for name, tensor in base.items()}
    for other, share in shares.items():
        for name, delta in vectors[other].items():
            state[f"bert.{name}"] = state[f"bert.{name}"] + share * delta
    head = load_file(toy.finetuned[task] / "model.safetensors")
    return {name: tensor.float() for name, tensor in state.items()} | {
        name: head[name] for name in ("classifier.weight", "classifier.bias")
    }


def plain_accuracy(toy, task, shares, vectors):
    inputs, labels = examples_of(toy, task)
    model = classifier(task, plain_mixture(toy, task, shares, vectors))
    return percent(text_predictions(model, toy.base, inputs), labels)


def deltas(toy, states):
    base = load_file(toy.base / "model.safetensors")
    return {
        task: {name: state[f"bert.{name}"].double() - base[name].double() for name in base}
        for task, state in states.items()
    }


@pytest.fixture(scope="module")
def compressed_vectors(toy):
    zoo = open_zoo(toy.zoo)
    return deltas(toy, {task: restore(str(toy.base), zoo[task]) for task in zoo})


@pytest.fixture(scope="module")
def whole_vectors(toy):
    return deltas(toy, {task: load_file(path / "model.safetensors") for task, path in toy.finetuned.items()})


@pytest.fixture(scope="module")
def plain_routes(toy):
    """Returns task -> (shares, leading task) of each test sample, computed by plain numpy."""
    from transformers import AutoModel, AutoTokenizer

    encoder = AutoModel.from_pretrained(toy.base).eval()
    tokenize = AutoTokenizer.from_pretrained(toy.base)
    query_set = read_query_set(open_zoo(toy.zoo))
    names = np.array(query_set.header.tasks)[query_set.task_ids]
    found = {}
    for task in TASKS:
        found[task] = []
        for text in examples_of(toy, task)[0]:
            with torch.no_grad():
                hidden = encoder(**tokenize(text, truncation=True, return_tensors="pt")).last_hidden_state
            distances = np.linalg.norm(query_set.points - hidden[0].mean(0).numpy(), axis=1)
            nearest = names[np.argsort(distances)[:NEIGHBOURS]]
            shares = {other: float(np.mean(nearest == other)) for other in TASKS}
            leading = next(each for each in nearest if shares[each] == max(shares.values()))
            found[task].append((shares, leading))
    return found


def test_the_methods_have_different_scores_on_the_toy(rows, plain_routes):
    averages = {name: row.average for name, row in rows.items()}
    assert len({round(average, 6) for average in averages.values()}) >= 5, averages
    assert averages["individual"] == pytest.approx(80)
    assert any(0 < max(shares.values()) < 1 for routes in plain_routes.values() for shares, _ in routes)


def test_every_method_has_one_score_and_a_routed_method_one_for_each_mode(rows):
    assert list(rows) == [*ALL[:-1], *(f"auto-switch ({mode})" for mode in MODES)]
    for row in rows.values():
        assert list(row.values) == list(TASKS)
        assert row.seconds > 0
        assert row.average == pytest.approx(sum(row.values.values()) / 3)


def test_individual_scores_the_finetuned_models(toy, rows):
    for task, path in toy.finetuned.items():
        inputs, labels = examples_of(toy, task)
        expected = percent(plain_predictions(path, toy.base, inputs), labels)
        assert rows["individual"].values[task] == expected


def test_base_scores_the_base_with_each_tasks_head(toy, rows):
    for task in TASKS:
        assert rows["base"].values[task] == plain_accuracy(toy, task, {}, {})


def test_t_switch_scores_the_restored_models(toy, rows, compressed_vectors):
    zoo = open_zoo(toy.zoo)
    for task in TASKS:
        inputs, labels = examples_of(toy, task)
        model = classifier(task, dict(restore(str(toy.base), zoo[task])))
        expected = percent(text_predictions(model, toy.base, inputs), labels)
        assert rows["t-switch"].values[task] == expected
        assert plain_accuracy(toy, task, {task: 1}, compressed_vectors) == expected


@pytest.mark.parametrize(("method", "share"), [("average", 1 / 3), ("task-arithmetic", 0.3)])
def test_static_merges_use_the_whole_checkpoints_if_they_are_given(toy, rows, whole_vectors, method, share):
    for task in TASKS:
        expected = plain_accuracy(toy, task, dict.fromkeys(TASKS, share), whole_vectors)
        assert rows[method].values[task] == expected


def test_static_merges_use_the_zoos_tasks_if_no_checkpoints_are_given(toy, compressed_vectors):
    found = scores_of(toy, ["average"])["average"]
    for task in TASKS:
        shares = dict.fromkeys(TASKS, 1 / 3)
        assert found.values[task] == plain_accuracy(toy, task, shares, compressed_vectors)


def test_auto_switch_uses_each_samples_own_weights(toy, rows, plain_routes, compressed_vectors):
    for task in TASKS:
        inputs, labels = examples_of(toy, task)
        answers = []
        for text, (shares, _) in zip(inputs, plain_routes[task], strict=True):
            model = classifier(task, plain_mixture(toy, task, shares, compressed_vectors))
            answers += text_predictions(model, toy.base, [text])
        assert rows["auto-switch (per-sample)"].values[task] == percent(answers, labels)


def test_batch_mean_uses_the_mean_of_the_weights_of_a_tasks_samples(
    toy, rows, plain_routes, compressed_vectors
):
    for task in TASKS:
        mean = {other: float(np.mean([shares[other] for shares, _ in plain_routes[task]])) for other in TASKS}
        expected = plain_accuracy(toy, task, mean, compressed_vectors)
        assert rows["auto-switch (batch-mean)"].values[task] == expected


def test_batches_of_256_samples_of_one_task_are_averaged():
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], 700).astype(np.float32)
    stream = mixed_stream([600, 100])
    assert sorted(stream.tolist()) == [[0, row] for row in range(600)] + [[1, row] for row in range(100)]
    found = batch_means(stream, weights)
    for task, start, stop in ((0, 0, 256), (0, 256, 512), (0, 512, 600), (1, 0, 100)):
        own = (stream[:, 0] == task) & (stream[:, 1] >= start) & (stream[:, 1] < stop)
        expected = np.tile(weights[own].mean(0), (stop - start, 1))
        np.testing.assert_allclose(found[own], expected, atol=1e-6)


def test_the_oracle_is_t_switch(rows):
    assert rows["auto-switch (oracle)"].values == rows["t-switch"].values


def test_routing_accuracy_is_the_share_of_samples_whose_own_task_leads(rows, plain_routes):
    right = [leading == task for task, routes in plain_routes.items() for _, leading in routes]
    for mode in ("per-sample", "batch-mean"):
        row = rows[f"auto-switch ({mode})"]
        assert row.routing.accuracy == pytest.approx(100 * np.mean(right))
        assert row.routing.counts.sum(1).tolist() == [30] * len(TASKS)
        assert row.routing.entropy >= 0
    others = [row for name, row in rows.items() if "auto" not in name or "oracle" in name]
    assert {row.routing for row in others} == {None}


def test_bytes_are_the_stored_bytes_per_task_without_the_base(toy, rows):
    zoo = open_zoo(toy.zoo)
    heads = np.mean([4 * (classes * WIDTH + classes) for classes in TASKS.values()])
    parameters = sum(tensor.numel() for tensor in load_file(toy.base / "model.safetensors").values())
    stored = np.mean([task_file(toy.zoo, task).stat().st_size for task in TASKS])
    index_share = index_file(toy.zoo).stat().st_size / 3
    assert zoo.record.index is not None
    expected = {
        "base": heads,
        "individual": 4 * parameters + heads,
        "average": heads,
        "task-arithmetic": heads,
        "t-switch": stored,
    } | {f"auto-switch ({mode})": stored + index_share for mode in MODES}
    assert {name: row.bytes_per_task for name, row in rows.items()} == pytest.approx(expected)


def test_scores_do_not_depend_on_the_order_of_methods(toy, rows):
    for order in (
        ALL[::-1],
        ("auto-switch", "base", "t-switch", "individual", "t-switch", "average", "base"),
    ):
        found = scores_of(toy, order, finetuned=toy.pairs())
        assert accuracies(found) == {name: rows[name].values for name in found}


def test_no_method_uses_the_head_or_tensors_of_the_previous_one(toy, tmp_path):
    files, pairs = [], []
    for number, (task, classes) in enumerate(TASKS.items()):
        left_out = ["embeddings.*", "pooler.*"]
        artifact = make_artifact(toy.base, toy.finetuned[task], tmp_path / f"{task}.fsw", exclude=left_out)
        files.append(artifact.path)
        other = save_text_classifier(toy.base, tmp_path / task, classes, seed=50 + number)
        pairs.append(f"{task}={other}")
    partial = Toy(toy.base, toy.finetuned, pack(tmp_path / "zoo", files).path, toy.data)
    index(partial)
    methods = ("auto-switch", "t-switch", "average", "base")
    expected = {}
    for method in methods:
        expected |= accuracies(scores_of(partial, [method], finetuned=pairs))
    for method in methods:
        found = accuracies(scores_of(partial, ["individual", method], finetuned=pairs))
        assert found == {name: expected.get(name, found["individual"]) for name in found}
    assert found["individual"] != expected["t-switch"]


def test_scoring_again_gives_the_same(toy, rows):
    evaluation = open_evaluation(request(toy, methods=ALL, modes=MODES, finetuned=toy.pairs()))
    for method in (*ALL, *ALL):
        for row in score(evaluation, method, MODES):
            assert row.values == rows[row.method].values
    assert evaluation.base_score.values == rows["base"].values


def test_without_dropping_p_discard_is_individual(toy, rows, tmp_path):
    zoo = pack_finetuned(tmp_path / "whole", toy.base, toy.finetuned, "p-discard", ["drop=0"])
    whole = Toy(toy.base, toy.finetuned, zoo, toy.data)
    found = scores_of(whole, ["individual", "p-discard"], finetuned=toy.pairs())
    assert found["p-discard"].values == found["individual"].values == rows["individual"].values


@pytest.mark.parametrize("make", [image_toy, encoder_toy])
def test_other_adapters_give_the_same_scores_as_plain_models(tmp_path, make):
    toy = make(tmp_path)
    index(toy, per_task=8)
    rows = scores_of(toy, ALL, finetuned=toy.pairs())
    assert rows["auto-switch (oracle)"].values == rows["t-switch"].values
    assert len({row.average for row in rows.values()}) > 2
    whole = pack_finetuned(tmp_path / "whole", toy.base, toy.finetuned, "p-discard", ["drop=0"])
    exact = scores_of(Toy(toy.base, toy.finetuned, whole, toy.data), ["p-discard"])
    assert exact["p-discard"].values == rows["individual"].values
    if make is image_toy:
        assert rows["individual"].average == pytest.approx(80)


def test_a_prefix_in_a_checkpoints_names_does_not_change_its_score(toy, tmp_path):
    finetuned = {}
    for task, path in toy.finetuned.items():
        finetuned[task] = shutil.copytree(path, tmp_path / task)
        state = load_file(path / "model.safetensors")
        longer = {f"model.{name}": tensor for name, tensor in state.items()}
        save_state(finetuned[task] / "model.safetensors", longer)
    zoo = pack_finetuned(tmp_path / "packed", toy.base, finetuned, "t-switch")
    other = Toy(toy.base, finetuned, zoo, toy.data)
    index(other)
    methods = ("individual", "average", "t-switch", "auto-switch")
    found = scores_of(other, methods, finetuned=other.pairs())
    expected = scores_of(toy, methods, finetuned=toy.pairs())
    assert accuracies(found) == accuracies(expected)


def test_every_task_has_the_same_weight_in_the_average():
    assert Score("base", {"birds": 50.0, "cities": 100.0}, 10.0, 0.1).average == 75.0
