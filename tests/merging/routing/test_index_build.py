"""Building a zoo's index: which exemplars are drawn, what is stored, what is refused."""

import gzip
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import message
from support.tiny_models import contents, pack, save_state, state_artifacts, text_toy, texts, write_jsonl
from support.zoo_files import INDEX_FILE, index_file, without_hashes, writer_of

from flexswitch.codecs.errors import ArtifactError, InputError, UsageError
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import SUFFIXES, draw, ignored_files, read_exemplars
from flexswitch.merging.models.runner import Runner
from flexswitch.merging.routing.features import FileFeatures, feature_source
from flexswitch.merging.routing.index_build import build_index, exemplars_of
from flexswitch.merging.routing.index_options import IndexOptions
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.zoos.pack import Form, change_zoo

COUNTS = {"birds": 12, "cities": 9, "tools": 30}


class CountedFeatures:
    """The features (length of the task's name, row in the file) of every example; records the requests."""

    spec = "pooled"
    dtype = "float32"

    def __init__(self):
        self.asked = {}

    def exemplars(self, task, examples, rows):
        self.asked[task] = [examples.inputs[row] for row in rows]
        return torch.tensor([[float(len(task)), float(row)] for row in examples.file_rows(rows)])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack(folder / "zoo", list(state_artifacts(folder / "made", list(COUNTS)).values()))
    return folder / "zoo"


@pytest.fixture
def zoo(packed, tmp_path):
    return open_zoo(shutil.copytree(packed, tmp_path / "zoo"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for task, count in COUNTS.items():
        write_jsonl(folder / f"{task}.train.jsonl.gz", texts(task, count, seed=0), None)
    return folder


def build(zoo, data, per_task=10, seed=0, source=None):
    reported = []
    record, notes = build_index(
        zoo,
        exemplars_of(zoo, data, per_task, seed),
        IndexOptions("pooled", per_task=per_task, seed=seed, normalise="none", metric="euclidean"),
        source or CountedFeatures(),
        reported.append,
        writer_of(zoo.path),
    )
    assert reported == list(zoo)
    return record, notes


@given(
    available=st.integers(0, 300),
    wanted=st.integers(1, 300),
    seed=st.integers(-(2**40), 2**40),
    task=st.text(max_size=9),
)
def test_exemplars_are_drawn_reproducibly_in_order_and_without_repetition(available, wanted, seed, task):
    rows = draw(available, wanted, seed, task)
    assert rows.dtype == np.int64
    assert len(rows) == min(available, wanted)
    assert (np.diff(rows) > 0).all()
    assert all(0 <= row < available for row in rows)
    np.testing.assert_array_equal(rows, draw(available, wanted, seed, task))
    assert set(rows) <= set(draw(available, wanted + 1, seed, task))


def test_another_seed_or_task_draws_other_exemplars():
    rows = draw(1000, 20, 0, "birds").tolist()
    assert rows != draw(1000, 20, 1, "birds").tolist()
    assert rows != draw(1000, 20, 0, "cities").tolist()


def test_the_draw_never_changes():
    assert draw(1000, 5, 0, "sst2").tolist() == [201, 265, 281, 734, 881]


def test_the_draw_is_uniform_over_the_examples():
    counts = sum(np.isin(np.arange(20), draw(20, 5, seed, "birds")) for seed in range(400))
    assert counts.min() > 60
    assert counts.max() < 140


def test_the_index_holds_the_features_of_the_drawn_exemplars_by_task(zoo, data):
    source = CountedFeatures()
    record, notes = build(zoo, data, per_task=5, seed=3, source=source)
    assert notes == []
    reopened = open_zoo(zoo.path)
    assert reopened.record.index == record
    assert (record.features, record.per_task, record.seed) == ("pooled", 5, 3)
    query_set = read_query_set(reopened)
    assert query_set.header.tasks == ["birds", "cities", "tools"]
    assert query_set.task_ids.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for number, (task, count) in enumerate(COUNTS.items()):
        rows = draw(count, 5, 3, task)
        expected = [[len(task), row] for row in rows]
        assert query_set.points[query_set.task_ids == number].tolist() == expected
        assert source.asked[task] == [texts(task, count, seed=0)[row] for row in rows]


def test_a_tasks_exemplars_do_not_depend_on_the_other_tasks(zoo, data, tmp_path):
    build(zoo, data, per_task=4)
    together = read_query_set(open_zoo(zoo.path))
    change_zoo(zoo.path, [], ["birds", "cities"], Form(), None, False, lambda task: None)
    alone = open_zoo(zoo.path)
    for task in ("birds", "cities"):
        (data / f"{task}.train.jsonl.gz").unlink()
    build(alone, data, per_task=4)
    rows = together.points[together.task_ids == 2]
    np.testing.assert_array_equal(read_query_set(open_zoo(zoo.path)).points, rows)


def test_building_again_writes_the_same_bytes_and_changes_no_task(zoo, data):
    build(zoo, data)
    first = contents(zoo.path)
    build(open_zoo(zoo.path), data)
    assert contents(zoo.path) == first
    build(open_zoo(zoo.path), data, seed=1)
    changed = {name for name, data in contents(zoo.path).items() if data != first.get(name)}
    assert without_hashes(changed) == {INDEX_FILE, ZOO_FILE}


def test_all_exemplars_are_used_with_a_note_if_there_are_too_few(zoo, data):
    record, notes = build(zoo, data, per_task=12)
    assert notes == ["task 'cities' has 9 examples, fewer than the 12 asked for; all are used"]
    assert record.per_task == 12
    query_set = read_query_set(open_zoo(zoo.path))
    assert np.bincount(query_set.task_ids).tolist() == [12, 9, 12]
    assert query_set.points[query_set.task_ids == 1][:, 1].tolist() == list(range(9))


def test_the_labels_of_exemplars_are_not_read(zoo, data):
    (data / "tools.train.jsonl.gz").unlink()
    lines = '{"text": "a", "label": "good"}\n{"text": "b", "label": 1.5}\n{"text": "c"}\n'
    (data / "tools.train.jsonl").write_text(lines)
    build(zoo, data, per_task=3)
    assert len(read_query_set(open_zoo(zoo.path)).points) == 9


def test_the_index_of_a_real_base_holds_its_features(tmp_path):
    toy = text_toy(tmp_path, test_count=1)
    zoo, base = open_zoo(toy.zoo), open_checkpoint(str(toy.base))
    source = feature_source("layer:1", Runner(get_adapter(base, zoo.record.adapter)), zoo)
    record, _ = build(zoo, toy.data, per_task=4, source=source)
    assert record.features == "layer:1"
    query_set = read_query_set(open_zoo(toy.zoo))
    examples = read_exemplars(toy.data, "birds", 4, 0)
    expected = source.rows("birds", "train", examples, np.arange(4))
    np.testing.assert_allclose(query_set.points[:4], expected, rtol=0, atol=1e-5)


# --- what is refused, and that the zoo then stays as it was ------------------------------------------------


def refused(zoo, data, error=InputError, source=None):
    before = contents(zoo.path)
    found = message(error, lambda: build(zoo, data, source=source))
    assert contents(zoo.path) == before
    return found


def test_a_missing_exemplar_file_is_refused(zoo, data):
    (data / "cities.train.jsonl.gz").unlink()
    assert refused(zoo, data) == (
        f"{data}: has no train file of the task 'cities'; expected cities.train with one of "
        f"{', '.join(SUFFIXES)} (it has: birds, tools)"
    )


def test_a_missing_folder_of_exemplars_is_refused(zoo, tmp_path):
    assert refused(zoo, tmp_path / "no") == (
        f"{tmp_path / 'no'}: no such folder; expected a folder of <task>.train.jsonl.gz files"
    )


def test_an_empty_exemplar_file_is_refused(zoo, data):
    path = data / "cities.train.jsonl.gz"
    path.write_bytes(gzip.compress(b"", mtime=0))
    assert refused(zoo, data) == f"{path}: has no examples; expected at least one"


def test_files_of_other_tasks_are_ignored_with_a_note(zoo, data):
    write_jsonl(data / "planets.test.jsonl", ["a"], [0])
    build(zoo, data)
    assert ignored_files(data, "train", zoo) == []
    for task in "abcdefg":
        write_jsonl(data / f"{task}.train.jsonl", ["a"], None)
    build(zoo, data)
    assert ignored_files(data, "train", zoo) == [
        f"{data}: its train files of tasks that the zoo lacks are ignored: a, b, c, d, e and 2 more"
    ]


def test_a_task_with_two_exemplar_files_is_refused(zoo, data):
    path = write_jsonl(data / "birds.train.jsonl", ["a"], None)
    other = data / "birds.train.jsonl.gz"
    assert refused(zoo, data) == f"{other}: the task 'birds' also has the file {path.name}; keep one of them"


def test_a_zoo_without_tasks_has_nothing_to_index(zoo, data):
    change_zoo(zoo.path, [], list(zoo), Form(), None, False, lambda task: None)
    assert refused(open_zoo(zoo.path), data) == (
        f"{zoo.path}: holds no tasks; add some: flexswitch pack -o {zoo.path} --add A.fsw"
    )


def test_features_of_different_widths_are_refused(zoo, data, tmp_path):
    widths = {"birds": 3, "cities": 3, "tools": 4}
    tensors = {f"{task}.train": torch.zeros(COUNTS[task], width) for task, width in widths.items()}
    source = FileFeatures(save_state(tmp_path / "mine.safetensors", tensors))
    assert refused(zoo, data, source=source) == (
        "the features of 'tools' have the width 4, those of the first task 3"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(zoo, data, tmp_path, value):
    tensors = {f"{task}.train": torch.zeros(count, 3) for task, count in COUNTS.items()}
    tensors["cities.train"] += value
    source = FileFeatures(save_state(tmp_path / "mine.safetensors", tensors))
    assert refused(zoo, data, source=source) == (
        "the features of 'cities' are not finite; its exemplars can't be searched by distance"
    )


def test_a_failing_source_of_features_leaves_the_old_index(zoo, data):
    build(zoo, data)

    def fail(task, examples, rows):
        raise UsageError("features 'layer:9': no")

    source = SimpleNamespace(spec="layer:9", dtype="float32", exemplars=fail)
    assert refused(open_zoo(zoo.path), data, UsageError, source) == "features 'layer:9': no"
    read_query_set(open_zoo(zoo.path))


def test_a_damaged_index_is_replaced_by_building_again(zoo, data):
    build(zoo, data)
    index_file(zoo.path).write_bytes(b"")
    message(ArtifactError, lambda: read_query_set(open_zoo(zoo.path)))
    build(open_zoo(zoo.path), data)
    read_query_set(open_zoo(zoo.path))
