"""Every format of an examples file gives the same examples."""

import gzip
import os
from codecs import BOM_UTF8

import numpy as np
import pytest
from support.checkpoints import message
from support.data_files import LABELS, RECORDS, TEXTS, WRITERS, npz, write

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.examples import (
    SUFFIXES,
    Examples,
    draw,
    first,
    read_examples,
    read_exemplars,
    task_file,
    tasks_with,
)

# --- reading a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITERS)
def test_texts_and_labels_are_the_same_in_every_format(tmp_path, suffix):
    path = write(tmp_path, f"birds.test{suffix}", WRITERS[suffix](RECORDS))
    for labelled in (True, False):
        examples = read_examples(path, labelled)
        assert list(examples.inputs) == TEXTS
        assert len(examples) == 4
    labels = read_examples(path, labelled=True).labels
    assert [int(label) for label in labels] == LABELS
    assert read_examples(path, labelled=False).labels is None


def test_every_format_is_tested():
    assert {*WRITERS, ".npz"} == set(SUFFIXES)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.int32, np.int64, np.uint8, np.float32])
def test_images_and_labels_keep_their_types(tmp_path, dtype, label_dtype):
    images = np.arange(96).reshape(2, 3, 4, 4).astype(dtype)
    path = write(tmp_path, "birds.test.npz", npz(x=images, y=np.array([1, 0], label_dtype)))
    examples = read_examples(path, labelled=True)
    assert examples.inputs.dtype == dtype
    np.testing.assert_array_equal(examples.inputs, images)
    assert examples.labels == [1, 0]
    assert type(examples.labels[0]) is (float if label_dtype is np.float32 else int)


def test_other_fields_blank_lines_and_windows_line_ends_are_ignored(tmp_path):
    text = b'{"id": 7, "text": "a", "label": 1}\r\n\n   \n{"label": "0", "text": "b"}'
    path = write(tmp_path, "birds.test.jsonl", text)
    examples = read_examples(path, labelled=True)
    assert (list(examples.inputs), examples.labels) == (["a", "b"], [1, "0"])
    path = write(tmp_path, "birds.test.csv", b'id,label,text\r\n7,1,"a\r\nb"\r\n')
    examples = read_examples(path, labelled=True)
    assert (list(examples.inputs), examples.labels) == (["a\r\nb"], ["1"])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_a_byte_order_mark_is_ignored(tmp_path, suffix):
    data = WRITERS[suffix](RECORDS)
    marked = gzip.compress(BOM_UTF8 + gzip.decompress(data)) if suffix.endswith(".gz") else BOM_UTF8 + data
    path = write(tmp_path, f"birds.test{suffix}", marked)
    assert list(read_examples(path, labelled=False).inputs) == TEXTS


def test_rows_are_taken_in_the_given_order():
    rows = np.array([2, 0, 2])
    taken = Examples(TEXTS, LABELS).take(rows)
    assert (list(taken.inputs), taken.labels) == ([TEXTS[2], TEXTS[0], TEXTS[2]], [1, 2, 1])
    images = np.arange(12).reshape(4, 3)
    taken = Examples(images, None).take(rows)
    np.testing.assert_array_equal(taken.inputs, images[rows])
    assert taken.labels is None


def test_rows_are_ordered_by_the_length_of_their_text():
    examples = Examples(["aaa", "b", "cc", "d"], None)
    assert examples.by_length(np.array([0, 3, 2, 1])).tolist() == [3, 1, 2, 0]
    assert Examples(np.zeros((4, 2)), None).by_length(np.array([2, 0])).tolist() == [2, 0]


@pytest.mark.parametrize("suffix", [*WRITERS, ".npz"])
def test_chosen_rows_alone_are_parsed_and_know_where_they_are(tmp_path, suffix):
    records = [{"text": f"text {row}", "label": row % 3} for row in range(20)]
    x = np.arange(40).reshape(20, 2)
    data = npz(x=x, y=np.arange(20) % 3) if suffix == ".npz" else WRITERS[suffix](records)
    path = write(tmp_path, f"birds.train{suffix}", data)
    every = read_examples(path, labelled=True)
    found = read_exemplars(tmp_path, "birds", 5, 7, labelled=True)
    rows = draw(20, 5, 7, "birds")
    assert list(map(str, found.inputs)) == [str(every.inputs[row]) for row in rows]
    assert [int(label) for label in found.labels] == [row % 3 for row in rows]
    assert (len(found), found.available, found.file_rows(np.array([4, 0])).tolist()) == (
        5,
        20,
        [rows[4], rows[0]],
    )
    taken = found.take(np.array([4, 0]))
    assert taken.file_rows(np.arange(2)).tolist() == [rows[4], rows[0]]
    limited = read_examples(path, True, first(3))
    assert (len(limited), limited.available, [*map(int, limited.labels)]) == (3, 20, [0, 1, 2])
    assert len(read_examples(path, True, first(99))) == 20


def test_lines_that_are_not_chosen_are_only_counted(tmp_path):
    path = write(tmp_path, "birds.test.jsonl", b'{"text": "a", "label": 0}\n{not json\n\n')
    examples = read_examples(path, True, first(1))
    assert (list(examples.inputs), examples.available) == (["a"], 2)


# --- finding a task's file --------------------------------------------------------------------------------


def test_a_tasks_file_is_found_by_split_in_any_format(tmp_path):
    for name in (
        "b.test.npz",
        "a.test.jsonl.gz",
        "a.train.csv",
        "c.d.test.parquet",
        "notes.txt",
        "e.test.tsv",
    ):
        write(tmp_path, name, b"")
    (tmp_path / "folder.test.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.test.csv")  # reading it would wait for ever
    assert tasks_with(tmp_path, "test") == {
        "a": tmp_path / "a.test.jsonl.gz",
        "b": tmp_path / "b.test.npz",
        "c.d": tmp_path / "c.d.test.parquet",
    }
    assert task_file(tmp_path, "a", "train") == tmp_path / "a.train.csv"


def test_a_task_with_two_files_is_refused(tmp_path):
    for name in ("birds.test.csv", "birds.test.jsonl", "birds.train.npz"):
        write(tmp_path, name, b"")
    for call in (lambda: tasks_with(tmp_path, "test"), lambda: task_file(tmp_path, "cities", "test")):
        assert message(InputError, call) == (
            f"{tmp_path / 'birds.test.jsonl'}: the task 'birds' also has the file birds.test.csv; keep one of them"
        )
    assert task_file(tmp_path, "birds", "train") == tmp_path / "birds.train.npz"


def test_a_task_without_a_file_is_reported_with_the_tasks_that_have_one(tmp_path):
    expected = (
        f"{tmp_path}: has no test file of the task 'birds'; expected birds.test with one of "
        ".jsonl.gz, .jsonl, .csv, .parquet, .npz (it has: {})"
    )
    write(tmp_path, "birds.train.csv", b"")
    assert message(InputError, lambda: task_file(tmp_path, "birds", "test")) == expected.format("none")
    for name in ("tools.test.csv", "cities.test.npz"):
        write(tmp_path, name, b"")
    assert message(InputError, lambda: task_file(tmp_path, "birds", "test")) == expected.format(
        "cities, tools"
    )


def test_a_missing_folder_is_reported(tmp_path):
    assert message(InputError, lambda: tasks_with(tmp_path / "no", "test")) == (
        f"{tmp_path / 'no'}: no such folder; expected a folder of <task>.test.jsonl.gz files"
    )
