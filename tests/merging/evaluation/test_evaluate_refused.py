"""Eval refuses wrong inputs before it computes anything, with a message of one line."""

import pytest
from support.checkpoints import message
from support.evaluations import copy_of, indexed_toy, request
from support.tiny_models import (
    TASKS,
    Toy,
    make_artifact,
    pack,
    save_text_base,
    texts,
    write_jsonl,
)
from support.zoo_files import index_file

from flexswitch.codecs.errors import ArtifactError, InputError, UsageError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.commands.reporter import Silent
from flexswitch.merging.evaluation.methods import check_methods
from flexswitch.merging.evaluation.setup import Request, open_evaluation, read_finetuned
from flexswitch.merging.zoos.pack import Form, change_zoo


class Noting(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keeps a note."""
        self.notes.append(text)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return indexed_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copied(toy, tmp_path):
    return copy_of(toy, tmp_path)


@pytest.fixture
def unindexed(toy, tmp_path):
    zoo = pack(tmp_path / "bare", [open_zoo(toy.zoo).task_file(task) for task in TASKS])
    return Toy(toy.base, toy.finetuned, zoo.path, toy.data)


def test_an_unknown_method_is_refused_with_the_nearest_name(toy):
    found = message(UsageError, lambda: open_evaluation(request(toy, methods=["base", "t-swich"])))
    known = "(known: base, individual, average, linear, task-arithmetic, "
    assert found.startswith(f"--methods: no method is named 't-swich'; did you mean 't-switch'? {known}")
    assert found.endswith(", auto-switch, auto-flexswitch)")


def test_a_merge_of_another_number_of_tasks_is_refused_before_anything_is_computed(toy):
    found = message(UsageError, lambda: open_evaluation(request(toy, methods=["base", "nearswap"])))
    assert found.startswith("nearswap merges exactly 1 task, found ")


def test_an_unknown_mode_is_refused(toy):
    assert message(UsageError, lambda: open_evaluation(request(toy, modes=["per-batch"]))) == (
        "--routing: no mode is named 'per-batch' (known: per-sample, batch-mean, oracle)"
    )


def test_individual_needs_the_checkpoints(toy):
    assert message(InputError, lambda: open_evaluation(request(toy, methods=["individual"]))) == (
        "--methods individual: needs --finetuned TASK=CHECKPOINT for every task of the zoo"
    )


def test_a_zoo_of_another_method_is_refused_with_its_own_methods(toy, tmp_path):
    assert message(InputError, lambda: open_evaluation(request(toy, methods=["p-discard"]))) == (
        f"--methods p-discard: the tasks of {toy.zoo} are stored by t-switch"
    )
    finetuned = dict(toy.finetuned)
    files = [open_zoo(toy.zoo).task_file(task) for task in ("birds", "cities")]
    other = make_artifact(toy.base, finetuned["tools"], tmp_path / "tools.fsw", "p-discard")
    mixed = pack(tmp_path / "mixed", [*files, other.path])
    for method in ("t-switch", "p-discard"):
        found = message(InputError, lambda method=method: check_methods([method], [], mixed, False))
        assert found == f"--methods {method}: the tasks of {mixed.path} are stored by p-discard, t-switch"
    check_methods(["base", "average"], ["oracle"], mixed, False)


def test_auto_switch_needs_an_index(unindexed):
    assert message(InputError, lambda: open_evaluation(request(unindexed, methods=["auto-switch"]))) == (
        f"{unindexed.zoo}: the zoo has no query index; build one: "
        f"flexswitch index {unindexed.zoo} --base BASE --exemplars DIR"
    )


def test_a_damaged_index_is_refused_if_it_is_needed(copied):
    index_file(copied.zoo).write_bytes(b"")
    found = message(ArtifactError, lambda: open_evaluation(request(copied, methods=["auto-switch"])))
    assert found.startswith(f"{index_file(copied.zoo)}: is not the file that was packed as the query index: ")
    open_evaluation(request(copied, limit=1))


def test_a_task_that_the_index_lacks_is_reported(copied, tmp_path):
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
    assert found.startswith(f"{other}: is not the base of {toy.zoo}: its fingerprint is ")


def test_a_missing_test_file_is_reported(copied):
    (copied.data / "cities.test.jsonl").unlink()
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{copied.data}: has no test file of the task 'cities'; expected cities.test with one of "
        ".jsonl.gz, .jsonl, .csv, .parquet, .npz (it has: birds, tools)"
    )


def test_test_examples_without_labels_are_refused(copied):
    path = write_jsonl(copied.data / "cities.test.jsonl", ["word1"], None)
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{path}: its examples have no labels; expected a field 'label' (or an array 'y')"
    )


def test_a_label_that_is_no_class_of_the_head_is_refused(copied):
    classes = TASKS["cities"]
    path = write_jsonl(copied.data / "cities.test.jsonl", ["word1", "word2"], [0, classes])
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{path}: line 2 has the label {classes}, expected the number of one of the model's {classes} classes, "
        "counted from 0"
    )


def test_test_files_of_tasks_that_the_zoo_lacks_are_ignored_with_a_note(copied):
    path = write_jsonl(copied.data / "rivers.test.jsonl", ["word1"], [0])
    reporter = Noting()
    found = evaluate(
        copied.zoo, base=copied.base, data=copied.data, methods="base", limit=1, reporter=reporter
    )
    assert [*found.scores[0].values] == list(TASKS)
    assert reporter.notes == [
        f"{path.parent}: its test files of tasks that the zoo lacks are ignored: rivers"
    ]


def test_a_zoo_without_tasks_is_refused(copied):
    change_zoo(copied.zoo, [], list(TASKS), Form(), None, False, lambda task: None)
    assert message(InputError, lambda: open_evaluation(request(copied))) == (
        f"{copied.zoo}: holds no tasks; add some: flexswitch pack -o {copied.zoo} --add A.fsw"
    )


def test_an_unknown_device_is_refused(toy):
    assert message(UsageError, lambda: open_evaluation(request(toy, device="gpu"))) == (
        "--device: no device is named 'gpu'; did you mean 'cpu'? (known: cpu, cuda)"
    )


@pytest.mark.parametrize(
    ("metrics", "kind", "expected"),
    [
        (["birds"], UsageError, "--metric birds: expected TASK=NAME"),
        (["bird=f1"], InputError, "--metric bird=f1: no task is named 'bird'; did you mean 'birds'? (known: birds, cities, tools)"),
        (["birds=acuracy"], UsageError, "--metric birds=acuracy: no metric is named 'acuracy'; did you mean 'accuracy'? (known: accuracy, f1, matthews, pearson, spearman, token-f1, exact-match, perplexity, cosine, iou)"),
        (["birds=pearson"], UsageError, "--metric birds=pearson: does not measure outputs of the kind 'classes'; those that do: accuracy, f1, matthews"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_measure_the_task_is_refused(toy, metrics, kind, expected):
    assert message(kind, lambda: open_evaluation(request(toy, metrics=metrics))) == expected


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
def test_finetuned_checkpoints_that_fit_no_task_are_refused(toy, pairs, kind, expected):
    assert message(kind, lambda: read_finetuned(pairs, open_zoo(toy.zoo))) == expected
