"""Labels take the form of the model's outputs, or are refused with their place and the expected form."""

import numpy as np
import pytest
from support.checkpoints import message
from support.data_files import jsonl, npz, write

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.answers import answers_of
from flexswitch.merging.models.examples import Examples, read_examples
from flexswitch.merging.models.labels import checked_labels

CLASS = "the number of one of the model's 3 classes, counted from 0"
MARKS = "3 numbers, each 0 or 1"


def labels_of(kind, labels, columns=3):
    return checked_labels(kind, Examples(["a"] * len(labels), labels), columns)


@pytest.mark.parametrize(
    ("kind", "columns", "labels", "found"),
    [
        ("classes", 3, [0, 2, "1", 1.0], [0, 2, 1, 1]),
        ("labels", 3, [[0, 1, 1], [True, False, 0.0]], [(0, 1, 1), (1, 0, 0)]),
        ("labels", 1, [1, [0]], [(1,), (0,)]),
        ("values", 1, [0.5, "-2", [3]], [(0.5,), (-2.0,), (3.0,)]),
        ("values", 2, [[0.5, 1]], [(0.5, 1.0)]),
    ],
)
def test_labels_take_the_form_of_their_kind(kind, columns, labels, found):
    assert labels_of(kind, labels, columns) == found


@pytest.mark.parametrize(
    ("kind", "label", "shown", "expected"),
    [
        ("classes", "good", "'good'", CLASS),
        ("classes", 1.5, "1.5", CLASS),
        ("classes", [1], "[1]", CLASS),
        ("classes", -1, "-1", CLASS),
        ("classes", 3, "3", CLASS),
        ("classes", 2**70, str(2**70), CLASS),
        ("classes", "7" * 9000, f"'{'7' * 39}…", CLASS),
        ("classes", float("nan"), "nan", CLASS),
        ("classes", float("inf"), "inf", CLASS),
        ("classes", {"a": 1}, "{'a': 1}", CLASS),
        ("labels", [0, 1], "[0, 1]", MARKS),
        ("labels", [0, 1, 2], "[0, 1, 2]", MARKS),
        ("labels", [0, 1, None], "[0, 1, None]", MARKS),
        ("labels", "011", "'011'", MARKS),
        ("values", [0.5, 1], "[0.5, 1]", "3 numbers"),
        ("values", 0.5, "0.5", "3 numbers"),
        ("values", [0, 1, float("inf")], "[0, 1, inf]", "3 numbers"),
    ],
)
def test_a_label_of_another_form_is_refused_with_its_line(tmp_path, kind, label, shown, expected):
    assert message(InputError, lambda: labels_of(kind, [label])) == (
        f"example 0 has the label {shown}, expected {expected}"
    )
    records = [{"text": "a", "label": [0] * 3 if kind != "classes" else 0}, {"text": "a", "label": label}]
    path = write(tmp_path, "birds.test.jsonl", b"\n" + jsonl(records))
    assert message(InputError, lambda: checked_labels(kind, read_examples(path, True), 3)) == (
        f"{path}: line 3 has the label {shown}, expected {expected}"
    )


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_label_of_an_array_that_is_not_a_class_number_is_refused(tmp_path, value):
    path = write(tmp_path, "birds.test.npz", npz(x=np.zeros((2, 3)), y=np.array([1, value])))
    assert message(InputError, lambda: checked_labels("classes", read_examples(path, True), 3)) == (
        f"{path}: row 1 has the label {value}, expected {CLASS}"
    )


def test_answers_have_the_form_of_labels():
    import torch

    logits = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]])
    assert answers_of(None, "classes", logits, {}, []) == [2, 0]
    assert answers_of(None, "labels", logits, {}, []) == [[1, 0, 1], [1, 0, 0]]
    assert answers_of(None, "values", logits, {}, []) == [[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]]
