"""Evaluation against loops by hand: one sample at a time, with transformers and arithmetic on state dicts."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import message
from safetensors.torch import load_file
from tiny_models import (
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
    save_encoder_with_head,
    save_state,
    save_text_base,
    save_text_classifier,
    text_predictions,
    text_toy,
    texts,
    write_jsonl,
)

from flexswitch.codecs.errors import ArtifactError, InputError, UsageError
from flexswitch.codecs.zoo import INDEX_FILE, ZOO_FILE, open_zoo
from flexswitch.merging.evaluation.evaluate import Score
from flexswitch.merging.evaluation.methods import check_methods, score
from flexswitch.merging.evaluation.routed import _batch_of
from flexswitch.merging.evaluation.setup import Request, open_evaluation, read_finetuned
from flexswitch.merging.evaluation.stream_weights import batch_means, mixed_stream
from flexswitch.merging.packing import Form, change_zoo
from flexswitch.merging.routing.build import Settings
from flexswitch.merging.routing.indexing import Request as IndexRequest
from flexswitch.merging.routing.indexing import index_zoo
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.task_vector import restore

ALL = ("base", "individual", "average", "task-arithmetic", "t-switch", "auto-switch")
MODES = ("per-sample", "batch-mean", "oracle")
NEIGHBOURS = 5


def index(toy, kind="pooled", per_task=12):
    settings = Settings(per_task, normalise="none")
    request = IndexRequest(toy.zoo, str(toy.base), toy.data, str(kind), settings=settings)
    index_zoo(request, True, lambda task: None)


def request(toy, **changes):
    return Request(toy.zoo, str(toy.base), toy.data, **changes)


def scores_of(toy, methods, modes=MODES, **changes):
    """Returns the rows by name."""
    evaluation = open_evaluation(request(toy, methods=methods, modes=modes, **changes))
    rows = [row for method in methods for row in score(evaluation, method, modes)]
    return {row.method: row for row in rows}


def accuracies(rows):
    return {name: row.accuracy for name, row in rows.items()}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    toy = text_toy(tmp_path_factory.mktemp("toy"))
    index(toy)
    return toy


@pytest.fixture
def copied(toy, tmp_path):
    """The toy, its zoo and data copied, so that a test may change them."""
    zoo = shutil.copytree(toy.zoo, tmp_path / "zoo")
    return Toy(toy.base, toy.finetuned, zoo, shutil.copytree(toy.data, tmp_path / "data"))


@pytest.fixture(scope="module")
def rows(toy):
    return scores_of(toy, ALL, finetuned=toy.pairs())


# --- the loops by hand ------------------------------------------------------------------------------------


def examples_of(toy, task):
    lines = (toy.data / f"{task}.test.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["text"] for record in records], [record["label"] for record in records]


def percent(answers, labels):
    return 100 * sum(one == two for one, two in zip(answers, labels, strict=True)) / len(labels)


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
    """Returns each task's test samples' shares, task -> share, and the task that leads, by plain numpy."""
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


def test_the_toy_tells_methods_apart(rows, plain_routes):
    averages = {name: row.average for name, row in rows.items()}
    assert len({round(average, 6) for average in averages.values()}) >= 5, averages
    assert averages["individual"] == pytest.approx(80)
    assert any(0 < max(shares.values()) < 1 for routes in plain_routes.values() for shares, _ in routes)


def test_every_method_has_its_rows_and_routed_ones_a_row_for_each_mode(rows):
    assert list(rows) == [*ALL[:-1], *(f"auto-switch ({mode})" for mode in MODES)]
    for row in rows.values():
        assert list(row.accuracy) == list(TASKS)
        assert row.seconds > 0
        assert row.average == pytest.approx(sum(row.accuracy.values()) / 3)


def test_individual_is_what_the_finetuned_models_answer_by_themselves(toy, rows):
    for task, path in toy.finetuned.items():
        inputs, labels = examples_of(toy, task)
        expected = percent(plain_predictions(path, toy.base, inputs), labels)
        assert rows["individual"].accuracy[task] == expected


def test_base_is_the_base_under_each_tasks_head(toy, rows):
    for task in TASKS:
        assert rows["base"].accuracy[task] == plain_accuracy(toy, task, {}, {})


def test_t_switch_is_what_the_restored_models_answer(toy, rows, compressed_vectors):
    zoo = open_zoo(toy.zoo)
    for task in TASKS:
        inputs, labels = examples_of(toy, task)
        model = classifier(task, dict(restore(str(toy.base), zoo[task])))
        expected = percent(text_predictions(model, toy.base, inputs), labels)
        assert rows["t-switch"].accuracy[task] == expected
        assert plain_accuracy(toy, task, {task: 1}, compressed_vectors) == expected


@pytest.mark.parametrize(("method", "share"), [("average", 1 / 3), ("task-arithmetic", 0.3)])
def test_static_merges_are_of_the_whole_checkpoints_where_they_are_given(
    toy, rows, whole_vectors, method, share
):
    for task in TASKS:
        expected = plain_accuracy(toy, task, dict.fromkeys(TASKS, share), whole_vectors)
        assert rows[method].accuracy[task] == expected


def test_static_merges_are_of_the_zoos_tasks_where_no_checkpoints_are_given(toy, compressed_vectors):
    found = scores_of(toy, ["average"])["average"]
    for task in TASKS:
        shares = dict.fromkeys(TASKS, 1 / 3)
        assert found.accuracy[task] == plain_accuracy(toy, task, shares, compressed_vectors)


def test_auto_switch_answers_each_sample_under_its_own_weights(toy, rows, plain_routes, compressed_vectors):
    for task in TASKS:
        inputs, labels = examples_of(toy, task)
        answers = []
        for text, (shares, _) in zip(inputs, plain_routes[task], strict=True):
            model = classifier(task, plain_mixture(toy, task, shares, compressed_vectors))
            answers += text_predictions(model, toy.base, [text])
        assert rows["auto-switch (per-sample)"].accuracy[task] == percent(answers, labels)


def test_batch_mean_answers_each_task_under_the_mean_of_its_samples_weights(
    toy, rows, plain_routes, compressed_vectors
):
    for task in TASKS:
        mean = {other: float(np.mean([shares[other] for shares, _ in plain_routes[task]])) for other in TASKS}
        expected = plain_accuracy(toy, task, mean, compressed_vectors)
        assert rows["auto-switch (batch-mean)"].accuracy[task] == expected


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
    assert rows["auto-switch (oracle)"].accuracy == rows["t-switch"].accuracy


def test_routing_accuracy_is_how_often_the_samples_task_leads(rows, plain_routes):
    right = [leading == task for task, routes in plain_routes.items() for _, leading in routes]
    for mode in ("per-sample", "batch-mean"):
        row = rows[f"auto-switch ({mode})"]
        assert row.routing.accuracy == pytest.approx(100 * np.mean(right))
        assert row.routing.counts.sum(1).tolist() == [30] * len(TASKS)
        assert row.routing.entropy >= 0
    others = [row for name, row in rows.items() if "auto" not in name or "oracle" in name]
    assert {row.routing for row in others} == {None}


def test_bytes_are_what_a_task_takes_beside_the_base(toy, rows):
    zoo = open_zoo(toy.zoo)
    heads = np.mean([4 * (classes * WIDTH + classes) for classes in TASKS.values()])
    parameters = sum(tensor.numel() for tensor in load_file(toy.base / "model.safetensors").values())
    stored = np.mean([(toy.zoo / "tasks" / f"{task}.fsw").stat().st_size for task in TASKS])
    index_share = (toy.zoo / INDEX_FILE).stat().st_size / 3
    assert zoo.record.index is not None
    expected = {
        "base": heads,
        "individual": 4 * parameters + heads,
        "average": heads,
        "task-arithmetic": heads,
        "t-switch": stored,
    } | {f"auto-switch ({mode})": stored + index_share for mode in MODES}
    assert {name: row.bytes_per_task for name, row in rows.items()} == pytest.approx(expected)


def test_the_order_of_methods_does_not_matter_and_none_sees_anothers_weights(toy, rows):
    for order in (
        ALL[::-1],
        ("auto-switch", "base", "t-switch", "individual", "t-switch", "average", "base"),
    ):
        found = scores_of(toy, order, finetuned=toy.pairs())
        assert accuracies(found) == {name: rows[name].accuracy for name in found}


def test_no_method_sees_a_head_or_tensors_that_the_one_before_has_left(toy, tmp_path):
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
            assert row.accuracy == rows[row.method].accuracy
    assert evaluation.base_score.accuracy == rows["base"].accuracy


def test_without_dropping_p_discard_is_individual(toy, rows, tmp_path):
    zoo = pack_finetuned(tmp_path / "whole", toy.base, toy.finetuned, "p-discard", ["drop=0"])
    whole = Toy(toy.base, toy.finetuned, zoo, toy.data)
    found = scores_of(whole, ["individual", "p-discard"], finetuned=toy.pairs())
    assert found["p-discard"].accuracy == found["individual"].accuracy == rows["individual"].accuracy


@pytest.mark.parametrize("make", [image_toy, encoder_toy])
def test_other_adapters_hold_to_the_same(tmp_path, make):
    toy = make(tmp_path)
    index(toy, per_task=8)
    rows = scores_of(toy, ALL, finetuned=toy.pairs())
    assert rows["auto-switch (oracle)"].accuracy == rows["t-switch"].accuracy
    assert len({row.average for row in rows.values()}) > 2
    whole = pack_finetuned(tmp_path / "whole", toy.base, toy.finetuned, "p-discard", ["drop=0"])
    exact = scores_of(Toy(toy.base, toy.finetuned, whole, toy.data), ["p-discard"])
    assert exact["p-discard"].accuracy == rows["individual"].accuracy
    if make is image_toy:
        assert rows["individual"].average == pytest.approx(80)


def test_a_checkpoint_whose_names_carry_a_prefix_is_scored_as_without_it(toy, tmp_path):
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


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_a_limit_takes_the_first_examples_of_each_task(toy, limit):
    found = scores_of(toy, ["individual", "auto-switch"], ["per-sample"], finetuned=toy.pairs(), limit=limit)
    for task, path in toy.finetuned.items():
        inputs, labels = (each[:limit] for each in examples_of(toy, task))
        expected = percent(plain_predictions(path, toy.base, inputs), labels)
        assert found["individual"].accuracy[task] == expected


def test_the_number_of_neighbours_is_the_adapters_unless_given(toy, rows):
    methods, modes = ["auto-switch"], ["per-sample"]
    given = scores_of(toy, methods, modes, neighbours=NEIGHBOURS)
    assert accuracies(given) == {name: rows[name].accuracy for name in given}
    one = open_evaluation(request(toy, methods=methods, neighbours=1))
    samples = mixed_stream([30, 30, 30])
    routed = one.router.choose(samples, _batch_of(one.bench, samples))
    assert set(np.unique(routed.weights).tolist()) == {0.0, 1.0}


@pytest.fixture
def with_file(copied, tmp_path):
    """The toy indexed with features from a file: one-hot of the task, but for noise; and that file."""
    tensors = {}
    for number, task in enumerate(TASKS):
        for split, count in (("train", 20), ("test", 30)):
            noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(number))
            tensors[f"{task}.{split}"] = torch.eye(3)[number] + 0.01 * noise
    path = save_state(tmp_path / "features.safetensors", tensors)
    index(copied, kind=path)
    return copied, path


@pytest.mark.parametrize("limit", [None, 4])
def test_features_of_a_file_route_by_test_rows_also_under_a_limit(with_file, limit):
    toy, path = with_file
    methods = ["t-switch", "auto-switch"]
    found = scores_of(toy, methods, ["per-sample"], features=path, limit=limit)
    routed = found["auto-switch (per-sample)"]
    assert routed.routing.accuracy == 100
    assert routed.accuracy == found["t-switch"].accuracy


def test_a_zoo_indexed_with_a_file_asks_for_it_and_one_without_takes_none(with_file, toy):
    indexed, path = with_file
    methods = ["auto-switch"]
    assert message(InputError, lambda: open_evaluation(request(indexed, methods=methods))) == (
        f"{indexed.zoo}: was indexed with the features 'file'; give that file with --features"
    )
    assert message(InputError, lambda: open_evaluation(request(toy, methods=methods, features=path))) == (
        f"{toy.zoo}: was indexed with the features 'pooled'; leave out --features"
    )


def test_features_of_another_width_than_the_index_are_told(with_file, tmp_path):
    toy, path = with_file
    wide = {name: torch.cat([tensor, tensor], 1) for name, tensor in load_file(path).items()}
    other = save_state(tmp_path / "wide.safetensors", wide)
    evaluation = open_evaluation(request(toy, methods=["auto-switch"], features=other))
    assert message(InputError, lambda: score(evaluation, "auto-switch", ["per-sample"])) == (
        "features of width 6, the query index holds width 3"
    )


OWN_ADAPTER = """
from flexswitch.merging.evaluation.text_adapters import SequenceClassification

class Flipped(SequenceClassification):
    neighbours = 2
    def logits(self, model, batch):
        return -super().logits(model, batch)
"""


def test_the_adapter_given_is_used_before_the_zoos(toy, rows, tmp_path, monkeypatch):
    (tmp_path / "flipped_adapter.py").write_text(OWN_ADAPTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = scores_of(toy, ["t-switch"], adapter="python:flipped_adapter:Flipped")
    assert found["t-switch"].accuracy["birds"] == pytest.approx(100 - rows["t-switch"].accuracy["birds"])


def test_code_that_the_zoo_names_is_not_run(copied):
    document = json.loads((copied.zoo / ZOO_FILE).read_text()) | {"adapter": "python:os:getcwd"}
    (copied.zoo / ZOO_FILE).write_text(json.dumps(document))
    assert message(UsageError, lambda: open_evaluation(request(copied))) == (
        "the zoo asks for the code 'python:os:getcwd'; if you trust it, give it as --adapter"
    )


# --- what is refused --------------------------------------------------------------------------------------


@pytest.fixture
def unindexed(toy, tmp_path):
    zoo = pack(tmp_path / "bare", [open_zoo(toy.zoo).task_file(task) for task in TASKS])
    return Toy(toy.base, toy.finetuned, zoo.path, toy.data)


def test_an_unknown_method_is_told_with_the_nearest(toy):
    assert message(UsageError, lambda: open_evaluation(request(toy, methods=["base", "t-swich"]))) == (
        "--methods: no method is named 't-swich'; did you mean 't-switch'? (known: base, individual, average, "
        "task-arithmetic, t-switch, p-discard, bin-discard, dare, tvq, bitdelta, compeft, flexswitch, auto-switch, auto-flexswitch)"
    )


def test_an_unknown_mode_is_told(toy):
    assert message(UsageError, lambda: open_evaluation(request(toy, modes=["per-batch"]))) == (
        "--routing: no mode is named 'per-batch' (known: per-sample, batch-mean, oracle)"
    )


def test_individual_asks_for_the_checkpoints(toy):
    assert message(InputError, lambda: open_evaluation(request(toy, methods=["individual"]))) == (
        "--methods individual: give --finetuned TASK=CHECKPOINT for every task of the zoo"
    )


def test_a_zoo_of_another_method_is_told_with_what_it_holds(toy, tmp_path):
    assert message(InputError, lambda: open_evaluation(request(toy, methods=["p-discard"]))) == (
        f"--methods p-discard: {toy.zoo} holds tasks compressed by t-switch"
    )
    finetuned = dict(toy.finetuned)
    files = [open_zoo(toy.zoo).task_file(task) for task in ("birds", "cities")]
    other = make_artifact(toy.base, finetuned["tools"], tmp_path / "tools.fsw", "p-discard")
    mixed = pack(tmp_path / "mixed", [*files, other.path])
    for method in ("t-switch", "p-discard"):
        found = message(InputError, lambda method=method: check_methods([method], [], mixed, False))
        assert found == f"--methods {method}: {mixed.path} holds tasks compressed by p-discard, t-switch"
    check_methods(["base", "average"], ["oracle"], mixed, False)


def test_auto_switch_asks_for_an_index(unindexed):
    assert message(InputError, lambda: open_evaluation(request(unindexed, methods=["auto-switch"]))) == (
        f"{unindexed.zoo}: the zoo has no query index; build one: "
        f"flexswitch index {unindexed.zoo} --base BASE --exemplars DIR"
    )


def test_a_damaged_index_is_told_where_it_is_needed(copied):
    (copied.zoo / INDEX_FILE).write_bytes(b"")
    found = message(ArtifactError, lambda: open_evaluation(request(copied, methods=["auto-switch"])))
    assert found.startswith(
        f"{copied.zoo / INDEX_FILE}: is not the file that was packed as the query index: "
    )
    open_evaluation(request(copied, limit=1))


def test_a_task_that_the_index_lacks_is_told(copied, tmp_path):
    artifact = make_artifact(copied.base, copied.finetuned["birds"], tmp_path / "planets.fsw")
    change_zoo(copied.zoo, [artifact.path], [], Form(), None, False, lambda task: None)
    write_jsonl(copied.data / "planets.test.jsonl", texts("birds", 2, seed=0), [0, 1])
    assert message(InputError, lambda: open_evaluation(request(copied, methods=["auto-switch"]))) == (
        f"{copied.zoo}: the query index has no exemplars of the task 'planets'; add them: "
        f"flexswitch index {copied.zoo} --add --base BASE --exemplars DIR"
    )


def test_another_base_is_refused(toy, tmp_path):
    other = save_text_base(tmp_path / "other", seed=1)
    found = message(InputError, lambda: open_evaluation(Request(toy.zoo, str(other), toy.data)))
    assert found.startswith(f"{other}: is not the base of {toy.zoo}: its sampled fingerprint is ")


def test_a_missing_test_file_is_told(copied):
    (copied.data / "cities.test.jsonl").unlink()
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{copied.data}: has no test file of the task 'cities'; expected cities.test with one of "
        ".jsonl.gz, .jsonl, .csv, .parquet, .npz (it has: birds, tools)"
    )


def test_test_examples_without_labels_are_told(copied):
    path = write_jsonl(copied.data / "cities.test.jsonl", ["word1"], None)
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{path}: its examples carry no labels; expected a field 'label' (or an array 'y')"
    )


def test_a_zoo_without_tasks_has_nothing_to_score(copied):
    change_zoo(copied.zoo, [], list(TASKS), Form(), None, False, lambda task: None)
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{copied.zoo}: holds no tasks; add some: flexswitch pack -o {copied.zoo} --add A.fsw"
    )


def test_an_unknown_device_is_refused(toy):
    assert message(UsageError, lambda: open_evaluation(request(toy, device="gpu"))) == (
        "--device: no device is named 'gpu'; did you mean 'cpu'? (known: cpu, cuda)"
    )


def refusal(zoo, task):
    file = open_zoo(zoo).task_file(task)
    return (
        f"{file}: answers with numbers, as a regression does, and eval scores classes; restore the model and "
        f"measure it yourself: flexswitch merge {file} --base BASE -o OUT --task {task}"
    )


@pytest.mark.parametrize(("classes", "problem"), [(1, None), (2, "regression")])
def test_a_regression_is_refused_before_its_examples_are_read(toy, tmp_path, classes, problem):
    finetuned = save_text_classifier(toy.base, tmp_path / "tuned", classes, seed=1)
    path = finetuned / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    zoo = pack_finetuned(tmp_path / "packed", toy.base, {"birds": finetuned}, "t-switch")
    asked = Request(zoo, str(toy.base), tmp_path / "no data")
    assert message(InputError, lambda: open_evaluation(asked)) == refusal(zoo, "birds")


def test_an_encoder_with_a_head_of_one_row_is_refused(toy, tmp_path):
    finetuned = save_encoder_with_head(toy.base, tmp_path / "tuned", 1, seed=1)
    zoo = pack_finetuned(tmp_path / "packed", toy.base, {"birds": finetuned}, "t-switch")
    asked = Request(zoo, str(toy.base), toy.data)
    assert message(InputError, lambda: open_evaluation(asked)) == refusal(zoo, "birds")


ONE_COLUMN = """
from flexswitch.merging.evaluation.text_adapters import SequenceClassification

class OneColumn(SequenceClassification):
    def logits(self, model, batch):
        return super().logits(model, batch)[:, :1]
"""


def test_a_python_adapter_of_one_column_is_refused(toy, tmp_path, monkeypatch):
    (tmp_path / "one_column_adapter.py").write_text(ONE_COLUMN)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = request(toy, adapter="python:one_column_adapter:OneColumn")
    assert message(InputError, lambda: open_evaluation(asked)) == refusal(toy.zoo, "birds")


def test_finetuned_checkpoints_are_read_in_the_zoos_order(toy):
    zoo = open_zoo(toy.zoo)
    assert read_finetuned([], zoo) == {}
    pairs = ["tools=a", "birds=b=c", "cities=d", "tools=e"]
    assert list(read_finetuned(pairs, zoo).items()) == [("birds", "b=c"), ("cities", "d"), ("tools", "e")]


@pytest.mark.parametrize(
    ("pairs", "kind", "expected"),
    [
        (["birds"], UsageError, "--finetuned birds: expected TASK=CHECKPOINT"),
        (["birds="], UsageError, "--finetuned birds=: expected TASK=CHECKPOINT"),
        (
            ["bird=a"],
            InputError,
            "--finetuned bird=a: no task is named 'bird'; did you mean 'birds'? (known: birds, cities, tools)",
        ),
        (
            ["birds=a", "tools=b"],
            InputError,
            "--finetuned: the task 'cities' has no checkpoint; give one for every task",
        ),
    ],
)
def test_finetuned_checkpoints_that_fit_no_task_are_told(toy, pairs, kind, expected):
    assert message(kind, lambda: read_finetuned(pairs, open_zoo(toy.zoo))) == expected


def test_scores_average_over_tasks_whatever_their_sizes():
    assert Score("base", {"birds": 50.0, "cities": 100.0}, 10.0, 0.1).average == 75.0


# --- engines and weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "grouped"])
def test_every_engine_gives_the_same_answers(toy, rows, engine):
    found = scores_of(toy, ["auto-switch"], MODES, engine=engine)
    assert accuracies(found) == {name: rows[name].accuracy for name in found}


def test_snapped_weights_are_told_and_lead_to_the_same_tasks(toy, rows):
    snapped = scores_of(toy, ["auto-switch"], ["per-sample"], snap=0.45)["auto-switch (per-sample)"].routing
    plain = rows["auto-switch (per-sample)"].routing
    assert plain.snapped == 0 < snapped.snapped
    assert snapped.entropy < plain.entropy
    assert np.array_equal(snapped.counts, plain.counts)


def test_a_kernel_vote_gives_other_weights(toy, rows):
    found = scores_of(toy, ["auto-switch"], ["per-sample"], vote="kernel")["auto-switch (per-sample)"].routing
    assert found.entropy != rows["auto-switch (per-sample)"].routing.entropy


def test_auto_flexswitch_asks_for_a_learned_metric(toy):
    zoo = open_zoo(toy.zoo)
    assert zoo.record.index.metric == "euclidean"
    expected = (
        f"--methods auto-flexswitch: no metric was learned when {toy.zoo} was indexed; index it again with "
        "--metric learned --overwrite"
    )
    assert message(InputError, lambda: check_methods(["auto-flexswitch"], MODES, zoo, False)) == expected
