"""Choosing layers, learning the metric and adding tasks, on a zoo of tiny models."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.checkpoints import message
from support.tiny_models import Toy, contents, save_state, text_toy, texts
from support.zoo_files import INDEX_FILE, index_file, task_file, without_hashes, write_index

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.models.examples import draw
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.indexing import add_to_index, index_zoo
from flexswitch.merging.routing.query_set import QuerySet, read_query_set
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.zoos.pack import Form, change_zoo

PER_TASK = 10


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return text_toy(tmp_path_factory.mktemp("toy"), test_count=1)


@pytest.fixture
def toy(original, tmp_path):
    zoo = shutil.copytree(original.zoo, tmp_path / "zoo")
    return Toy(original.base, original.finetuned, zoo, shutil.copytree(original.data, tmp_path / "data"))


PUBLISHED = {"normalise": "none", "metric": "euclidean"}


def inputs(toy, **options):
    """Returns the first four arguments of index_zoo and add_to_index."""
    return toy.zoo, str(toy.base), toy.data, IndexOptions(**{"per_task": PER_TASK, "rank": 4} | options)


def index(toy, **changes):
    reported = []
    record, notes = index_zoo(*inputs(toy, **changes), True, reported.append)
    assert reported == list(open_zoo(toy.zoo))
    return record, notes


def drawn(toy, task):
    """Returns the texts of a task's exemplars."""
    lines = texts(task, 20, seed=1 + ["birds", "cities", "tools"].index(task))
    return [lines[row] for row in draw(20, PER_TASK, 0, task)]


def plain_features(model, toy, inputs, layers):
    """Returns the layers' means by transformers alone, one text at a time."""
    from transformers import AutoTokenizer

    tokenize, rows = AutoTokenizer.from_pretrained(toy.base), []
    for text in inputs:
        with torch.no_grad():
            states = model(**tokenize(text, truncation=True, return_tensors="pt"), output_hidden_states=True)
        rows.append(torch.cat([states.hidden_states[layer][0].mean(0) for layer in layers]))
    return torch.stack(rows)


def base_model(toy):
    from transformers import AutoModel

    return AutoModel.from_pretrained(toy.base).eval()


def without(toy, task):
    """Removes a task from the zoo; returns a function that puts it back."""
    file = task_file(toy.zoo, task)
    kept = shutil.copy(file, toy.zoo.parent / f"{task}.fsw")
    change_zoo(toy.zoo, [], [task], Form(), None, False, lambda item: None)
    train = toy.data / f"{task}.train.jsonl.gz"
    away = shutil.move(train, toy.zoo.parent / train.name)

    def put_back():
        shutil.move(away, train)
        return change_zoo(toy.zoo, [kept], [], Form(), None, False, lambda item: None)[1]

    return put_back


# --- choosing layers and learning the metric ---


def test_auto_records_and_reports_the_layers_it_chose(toy):
    record, notes = index(toy)
    assert record.features in ("input", "layer:1", "layer:2", "layers:0+1", "layers:0+2")
    (note,) = [each for each in notes if "--features auto" in each]
    assert note.startswith(f"--features auto takes {record.features}, which routes ")
    assert (record.metric, record.rank) in (("learned", 4), ("euclidean", None))
    query_set = read_query_set(open_zoo(toy.zoo))
    numbers = (
        [0] if record.features == "input" else [int(n) for n in record.features.split(":")[1].split("+")]
    )
    features = plain_features(base_model(toy), toy, drawn(toy, "cities"), numbers)
    rows = query_set.points[query_set.task_ids == 1]
    np.testing.assert_allclose(rows, query_set.projection(features), rtol=2e-3, atol=2e-3)


def test_exemplars_of_several_layers_are_projected_like_new_texts(toy):
    record, notes = index(toy, features="layers:2+0")
    assert (record.features, record.metric, record.normalise, notes) == (
        "layers:2+0",
        "learned",
        "centred",
        [],
    )
    assert record.accuracy.learned_held_out > record.accuracy.euclidean_held_out
    query_set = read_query_set(open_zoo(toy.zoo))
    assert query_set.points.shape == (3 * PER_TASK, 4)
    assert query_set.projection.parts == 2
    features = plain_features(base_model(toy), toy, drawn(toy, "tools"), [2, 0])
    np.testing.assert_allclose(
        query_set.points[query_set.task_ids == 2], query_set.projection(features), rtol=2e-3, atol=2e-3
    )


def test_the_published_form_stores_the_features_themselves(toy):
    record, notes = index(toy, features="pooled", **PUBLISHED)
    assert (record.metric, record.rank, record.accuracy, notes) == ("euclidean", None, None, [])
    query_set = read_query_set(open_zoo(toy.zoo))
    assert query_set.projection is None
    features = plain_features(base_model(toy), toy, drawn(toy, "birds"), [2])
    np.testing.assert_allclose(query_set.points[:PER_TASK], features, rtol=0, atol=1e-5)


def test_averaged_features_come_from_the_mean_of_the_restored_models(toy):
    record, _ = index(toy, features="average:layer:2", **PUBLISHED)
    assert record.features == "average:layer:2"
    zoo, model = open_zoo(toy.zoo), base_model(toy)
    restored = [restore(str(toy.base), zoo[task]) for task in zoo]
    state = {
        name: torch.stack([each[f"bert.{name}"] for each in restored]).mean(0)
        if f"bert.{name}" in restored[0]
        else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    query_set = read_query_set(zoo)
    assert query_set.header.averaged == list(zoo)
    features = plain_features(model, toy, drawn(toy, "birds"), [2])
    np.testing.assert_allclose(query_set.points[:PER_TASK], features, rtol=0, atol=1e-4)
    assert (features - plain_features(base_model(toy), toy, drawn(toy, "birds"), [2])).abs().max() > 0.01


def test_bfloat16_is_recorded_for_routing_and_changes_no_exemplar(toy):
    index(toy, features="layer:1", **PUBLISHED)
    exact = read_query_set(open_zoo(toy.zoo)).points
    record, _ = index(toy, features="layer:1", dtype="bfloat16", **PUBLISHED)
    assert record.dtype == "bfloat16"
    found = read_query_set(open_zoo(toy.zoo)).points
    np.testing.assert_array_equal(found, exact)


def test_auto_needs_five_exemplars_per_task(toy):
    assert message(InputError, lambda: index(toy, per_task=4)) == (
        "--features auto: task 'birds' has 4 exemplars, and choosing layers needs 5 per task; give more, or name a "
        "layer: --features layer:N"
    )


def test_a_note_says_why_no_metric_can_be_learned(toy):
    record, notes = index(toy, features="input", per_task=4)
    assert notes == ["the Euclidean metric is kept: a task has fewer than 5 exemplars"]
    assert (record.metric, record.normalise) == ("euclidean", "centred")


# --- adding -----------------------------------------------------------------------------------------------


def store_metric(toy):
    """Replaces the Euclidean metric of the index by a random one of rank 4."""
    zoo = open_zoo(toy.zoo)
    old = read_query_set(zoo)
    matrix = np.random.Generator(np.random.PCG64(4)).normal(size=(4, old.points.shape[1])).astype(np.float32)
    projection = replace(old.projection, metric=matrix)
    new = QuerySet(old.header, old.points @ matrix.T, old.task_ids, projection)
    write_index(zoo.path, new)


@pytest.mark.parametrize("features", ["layers:2+0", "pooled"])
@pytest.mark.parametrize("metric", ["learned", "euclidean"])
def test_a_task_is_added_under_the_stored_projection_and_nothing_else_changes(toy, features, metric):
    put_back = without(toy, "cities")
    index(toy, features=features, metric="euclidean")
    if metric == "learned":
        store_metric(toy)
    before, files = read_query_set(open_zoo(toy.zoo)), contents(toy.zoo)
    assert put_back() == [
        f"the query index lacks cities; add them: flexswitch index {toy.zoo} --add --base BASE --exemplars DIR"
    ]
    record, added, notes = add_to_index(*inputs(toy), None, lambda task: None)
    assert added == ["cities"]
    note = f"the metric was learned without cities; `flexswitch index {toy.zoo} --overwrite` learns it from all tasks"
    assert notes == ([note] if metric == "learned" else [])
    after = read_query_set(open_zoo(toy.zoo))
    assert after.header == before.header.model_copy(update={"tasks": ["birds", "tools", "cities"]})
    assert record == open_zoo(toy.zoo).record.index
    np.testing.assert_array_equal(after.points[: 2 * PER_TASK], before.points)
    np.testing.assert_array_equal(after.task_ids, np.repeat(np.arange(3), PER_TASK))
    layers = [2, 0] if features == "layers:2+0" else [2]
    expected = after.projection(plain_features(base_model(toy), toy, drawn(toy, "cities"), layers))
    np.testing.assert_allclose(after.points[2 * PER_TASK :], expected, rtol=2e-3, atol=2e-3)
    changed = {name for name, data in contents(toy.zoo).items() if files.get(name) != data}
    assert without_hashes(changed) == {INDEX_FILE, ZOO_FILE, "tasks/cities.fsw"}


def test_an_added_task_that_is_removed_again_leaves_the_index_as_it_was(toy):
    put_back = without(toy, "cities")
    index(toy, features="input")
    before = index_file(toy.zoo).read_bytes()
    put_back()
    add_to_index(*inputs(toy), None, lambda task: None)
    without(toy, "cities")
    assert index_file(toy.zoo).read_bytes() == before


def test_there_is_nothing_to_add_to_an_index_of_all_tasks(toy):
    index(toy, features="input")
    assert message(InputError, lambda: add_to_index(*inputs(toy), None, lambda task: None)) == (
        f"{toy.zoo}: the query index has all of its tasks; there is nothing to add"
    )


def test_adding_to_an_index_of_a_feature_file_needs_a_feature_file(toy, tmp_path):
    put_back = without(toy, "cities")
    tensors = {f"{task}.train": torch.randn(20, 3) for task in ("birds", "cities", "tools")}
    file = save_state(tmp_path / "mine.safetensors", tensors)
    index(toy, features=str(file), **PUBLISHED)
    put_back()
    assert message(InputError, lambda: add_to_index(*inputs(toy), None, lambda task: None)) == (
        f"{toy.zoo}: was indexed with the features 'file'; give that file with --features"
    )
    add_to_index(*inputs(toy), file, lambda task: None)
    rows = tensors["cities.train"][torch.from_numpy(draw(20, PER_TASK, 0, "cities"))]
    np.testing.assert_array_equal(read_query_set(open_zoo(toy.zoo)).points[-PER_TASK:], rows)


def test_adding_to_an_index_of_averaged_features_keeps_the_averaged_tasks(toy):
    put_back = without(toy, "cities")
    index(toy, features="average:layer:1")
    put_back()
    add_to_index(*inputs(toy), None, lambda task: None)
    header = read_query_set(open_zoo(toy.zoo)).header
    assert (header.averaged, header.tasks) == (["birds", "tools"], ["birds", "tools", "cities"])


# --- as a user types it -----------------------------------------------------------------------------------


def command(toy, *options):
    return ("index", toy.zoo, "--base", toy.base, "--exemplars", toy.data, *options)


def test_the_command_reports_the_metric_and_labels_its_accuracies(toy, flexswitch):
    outcome = flexswitch(*command(toy, "--features", "layers:2+0", "--per-task", 10, "--rank", 4))
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith(
        f"{toy.zoo}: query index of 3 tasks, features layers:2+0 (float32, centred), learned metric of rank 4, "
    )
    assert "a fifth held out from the metric and the search: Euclidean " in lines[1]
    assert "one exemplar left out of the search only" in lines[2]
    document = json.loads(flexswitch(*command(toy, "--features", "input", "--overwrite", "--json")).out)
    assert set(document["accuracy"]) == {
        "euclidean_loo", "euclidean_held_out", "learned_loo", "learned_held_out",
    }  # fmt: skip


def test_the_command_adds_a_task(toy, flexswitch):
    put_back = without(toy, "cities")
    flexswitch(*command(toy, "--features", "layers:2+0", "--per-task", 10, "--metric", "euclidean", "-q"))
    store_metric(toy)
    put_back()
    outcome = flexswitch(*command(toy, "--add"))
    assert (outcome.status, outcome.out.splitlines()[1]) == (0, "added: cities")
    assert "the metric was learned without cities" in outcome.err


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--add", "--rank", 3), "--rank beside --add: tasks are added under the index's own settings; leave it out"),
        (("--add", "--features", "input"), "--features beside --add: tasks are added under the index's own settings; leave it out"),
        (("--add", "--overwrite"), "--overwrite beside --add: tasks are added under the index's own settings; leave it out"),
        (("--metric", "euclidean", "--rank", 3), "--rank: is the learned metric's, and --metric euclidean has none; leave one out"),
        (("--normalise", "center"), None),
        (("--feature-dtype", "float16"), None),
        (("--features", "layer:x"), None),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_wrong_usage(toy, flexswitch, options, found):
    before = contents(toy.zoo)
    outcome = flexswitch(*command(toy, *options))
    assert outcome.status == 2
    assert found is None or outcome.error == found
    assert contents(toy.zoo) == before
