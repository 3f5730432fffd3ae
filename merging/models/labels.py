"""The labels of examples, in the form in which the outputs of a kind are compared with them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.conversations import last_answer
from flexswitch.merging.models.examples import Examples
from flexswitch.merging.models.outputs import OutputKind

NOT_SCORED = -100  # in the place of a word's class
_LONGEST_LABEL = 40  # characters in a message


def checked_labels(kind: OutputKind, examples: Examples, columns: int) -> list[Any]:
    """Returns the examples' labels in the form of a kind of output.

    classes: a number; labels: 0 or 1 for each column; values: a number for each column; token-classes: a
    class, or none, for each word; features: a number for each pair; spans, masked-tokens: the accepted texts.
    columns: how many the model has. Raises: InputError where a label has another form.
    """
    if examples.labels is None:
        raise InputError(
            f"{_source(examples)}: its examples have no labels; expected a field 'label' (or an array 'y')"
        )
    if kind not in _FORMS:
        raise ValueError(f"outputs of the kind '{kind}' are not compared with labels")
    form, expected = _FORMS[kind]
    return [
        _checked(form(label, columns), examples, row, expected.format(columns=columns))
        for row, label in enumerate(examples.labels)
    ]


def expected_answers(examples: Examples) -> list[str]:
    """Returns the answers that the examples' prompts are to get. Raises: InputError where one has none."""
    answers = [None if isinstance(text, np.ndarray) else last_answer(text) for text in examples.inputs]
    lacking = next((row for row, answer in enumerate(answers) if answer is None), None)
    if lacking is not None:
        raise InputError(
            f"{_place(examples, lacking)} has no answer to compare with; expected 'prompt' and 'completion', "
            "'source' and 'target', or 'messages' that end with an assistant's"
        )
    return [answer for answer in answers if answer is not None]


def _checked(label: Any, examples: Examples, row: int, expected: str) -> Any:
    if label is None and examples.labels is not None:
        shown = _shortened(examples.labels[row])
        raise InputError(f"{_place(examples, row)} has the label {shown}, expected {expected}")
    return label


def _source(examples: Examples) -> str:
    return "the examples" if examples.origin is None else str(examples.origin.path)


def _place(examples: Examples, row: int) -> str:
    origin = examples.origin
    return f"example {row}" if origin is None else f"{origin.path}: {origin.places[row]}"


def _class(label: Any, columns: int) -> int | None:
    number = _number(label)
    if number is None or number != math.floor(number) or not 0 <= number < columns:
        return None
    return int(number)


def _several(label: Any, columns: int) -> tuple[int, ...] | None:
    marks = _numbers(label, columns)
    return None if marks is None or not set(marks) <= {0.0, 1.0} else tuple(int(mark) for mark in marks)


def _numbers(label: Any, columns: int) -> tuple[float, ...] | None:
    """Returns so many numbers, one of which needs no list; None where the label is something else."""
    parts = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    numbers = tuple(number for number in map(_number, parts) if number is not None)
    return numbers if len(numbers) == len(parts) == columns else None


def _number(label: Any) -> float | None:
    if not isinstance(label, int | float | str):
        return None
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _word_classes(label: Any, columns: int) -> list[int | None] | None:
    """Returns the class of each word, None for one that is not scored, for which files have -100."""
    if not isinstance(label, Sequence) or isinstance(label, str):
        return None
    found = [None if each == NOT_SCORED else _class(each, columns) for each in label]
    wrong = any(each is None and given != NOT_SCORED for each, given in zip(found, label, strict=True))
    return None if wrong else found


def _texts(label: Any, columns: int) -> tuple[str, ...] | None:
    texts = (label,) if isinstance(label, str) else label
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(texts)


def _shortened(label: Any) -> str:
    text = repr(label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[:_LONGEST_LABEL]}…"


# kind → its form, None for a label that has another one, and that form in words
_FORMS: dict[OutputKind, tuple[Callable[[Any, int], Any], str]] = {
    "classes": (_class, "the number of one of the model's {columns} classes, counted from 0"),
    "labels": (_several, "{columns} numbers, each 0 or 1"),
    "values": (_numbers, "{columns} numbers"),
    "token-classes": (_word_classes, "the number of one of the model's {columns} classes for each word"),
    "features": (lambda label, columns: _number(label), "a number, the similarity of the pair"),
    "spans": (_texts, "a text or several"),
    "masked-tokens": (_texts, "a text or several"),
}
