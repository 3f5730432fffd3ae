"""Reads a task's examples: `DIR/<task>.<split>` as .jsonl.gz, .jsonl, .csv, .parquet or .npz."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.array_files import read_arrays
from flexswitch.merging.models.conversations import Text
from flexswitch.merging.models.record_files import count_records, read_records

SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet", ".npz")
_SHOWN = 5
_LONGEST_REASON = 300  # characters in a message

Inputs = Sequence[Text] | NDArray[Any]
# the number of examples in a file -> the rows to read, ascending
Choose = Callable[[int], NDArray[np.int64]]
Batch = dict[str, Tensor]  # the tensors that a model takes; the first dimension is the sample


@dataclass(frozen=True, eq=False)
class Origin:
    """Where examples are from: their file, and how many examples it has.

    rows: (example,), their places among the file's examples, from 0; places: the same in words, as "line 7".
    """

    path: Path
    count: int
    rows: NDArray[np.int64]
    places: Sequence[str]

    def take(self, rows: NDArray[np.int64]) -> "Origin":
        """Returns the origin of these examples."""
        return Origin(self.path, self.count, self.rows[rows], [self.places[row] for row in rows])


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of one task, and their labels if the file has them.

    inputs: a list of texts, pairs or conversations, or an array (example, ...) of images; labels: as the file
    has them, or None; labels.py gives them the form of a model's outputs; origin: None for examples that were
    made otherwise; are_apart: whether they are pairs of texts, the second of each in the second half.
    """

    inputs: Inputs
    labels: Sequence[Any] | None
    origin: Origin | None = None
    are_apart: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def available(self) -> int:
        """The number of examples in the file."""
        return len(self) if self.origin is None else self.origin.count

    def file_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the places in the file of these rows of the examples."""
        return rows if self.origin is None else self.origin.rows[rows]

    def take(self, rows: NDArray[np.int64]) -> "Examples":
        """Returns the examples of these rows, in this order."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        origin = None if self.origin is None else self.origin.take(rows)
        if isinstance(self.inputs, np.ndarray):
            return Examples(self.inputs[rows], labels, origin)
        return Examples([self.inputs[row] for row in rows], labels, origin)

    def digest(self) -> str:
        """Returns the SHA-256 of the inputs."""
        digest = hashlib.sha256()
        for value in self.inputs:
            data = np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else _encoded(value)
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def order_by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the permutation that sorts the rows by text length, so that batches need little padding."""
        if isinstance(self.inputs, np.ndarray):
            return np.arange(len(rows))
        return np.argsort([len(self.inputs[row]) for row in rows], kind="stable")

    def by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows sorted by text length."""
        return rows[self.order_by_length(rows)]


def tasks_with(folder: Path, split: str) -> dict[str, Path]:
    """Returns task → file for the tasks that have a file of this split, sorted by name.

    Raises: InputError if the folder is missing, or a task has two files.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of <task>.{split}{SUFFIXES[0]} files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        for suffix in SUFFIXES:
            ending = f".{split}{suffix}"
            if path.name.endswith(ending) and path.is_file():
                task = path.name.removesuffix(ending)
                if task in found:
                    raise InputError(
                        f"{path}: the task '{task}' also has the file {found[task].name}; keep one of them"
                    )
                found[task] = path
    return found


def task_file(folder: Path, task: str, split: str, advice: str = "") -> Path:
    """Returns a task's file of this split. Raises: InputError, with the advice, if it is missing."""
    files = tasks_with(folder, split)
    if task not in files:
        raise InputError(
            f"{folder}: has no {split} file of the task '{task}'; expected {task}.{split} with one of "
            f"{', '.join(SUFFIXES)} (it has: {', '.join(files) or 'none'}){advice}"
        )
    return files[task]


def read_examples(path: Path, labelled: bool | None, choose: Choose | None = None) -> Examples:
    """Returns the examples of one file.

    labelled: whether with labels, None for with those that it has. choose: which of them, as ascending rows
    [default: all]; the others are only counted. Raises: InputError if the file is empty or damaged, or lacks
    a field.
    """
    try:
        examples = (_read_arrays if path.suffix == ".npz" else _read_texts)(path, labelled, choose)
    except Exception as reason:  # the readers raise many types on a damaged file
        if isinstance(reason, InputError) or type(reason) is MemoryError:  # pyarrow's is of a damaged size
            raise
        found = " ".join(str(reason).split())[:_LONGEST_REASON]
        raise InputError(f"{path}: cannot be read as examples ({found})") from reason
    if not len(examples):
        raise InputError(f"{path}: has no examples; expected at least one")
    if labelled and examples.labels is None:
        raise InputError(f"{path}: its examples have no labels; expected a field 'label' (or an array 'y')")
    return examples


def read_exemplars(folder: Path, task: str, count: int, seed: int, labelled: bool | None = False) -> Examples:
    """Returns up to `count` of a task's training examples, drawn by the seed, in the order of their file.

    Raises: InputError.
    """
    path = task_file(folder, task, "train")
    return read_examples(path, labelled, lambda available: draw(available, count, seed, task))


def ignored_files(folder: Path, split: str, tasks: Collection[str]) -> list[str]:
    """Returns a note on the files of other tasks than these in a folder, or nothing if there are none."""
    others = [task for task in tasks_with(folder, split) if task not in tasks]
    if not others:
        return []
    shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    return [f"{folder}: its {split} files of tasks that the zoo lacks are ignored: {shown}"]


def first(count: int | None) -> Choose | None:
    """Returns the choice of the first `count` examples, or of all if it is None."""
    return None if count is None else lambda available: np.arange(min(count, available))


def _encoded(text: Text) -> bytes:
    """Returns bytes that differ for different texts, pairs and conversations."""
    return (text if isinstance(text, str) else repr(text)).encode()


def _read_arrays(path: Path, labelled: bool | None, choose: Choose | None) -> Examples:
    inputs, labels = read_arrays(path)
    rows = np.arange(len(inputs)) if choose is None else choose(len(inputs))
    origin = Origin(path, len(inputs), rows, [f"row {row}" for row in rows])
    chosen = inputs[rows]
    is_finite = np.isfinite(chosen).all(axis=tuple(range(1, chosen.ndim)))
    if not is_finite.all():
        raise InputError(f"{path}: row {rows[~is_finite][0]} of 'x' holds NaN or infinite numbers")
    if labels is None or labelled is False:
        return Examples(chosen, None, origin)
    return Examples(chosen, labels[rows].tolist(), origin)


def _read_texts(path: Path, labelled: bool | None, choose: Choose | None) -> Examples:
    count = None if choose is None else count_records(path)
    rows = None if choose is None or count is None else choose(count)
    records = list(read_records(path, rows))
    texts = [record.values["text"] for record in records]
    labels = [record.values["label"] for record in records]
    places = [record.place for record in records]
    origin = Origin(path, count or len(texts), np.arange(len(texts)) if rows is None else rows, places)
    if labelled is False or None in labels:
        return Examples(texts, None, origin)
    return Examples(texts, labels, origin)


def draw(available: int, wanted: int, seed: int, task: str) -> NDArray[np.int64]:
    """Returns sorted rows drawn without repetition; they depend only on the arguments."""
    digest = hashlib.sha256(f"{seed}/{task}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return np.sort(generator.permutation(available)[:wanted]).astype(np.int64)


def batch_rows(step: int, size: int, count: int, seed: int) -> list[int]:
    """Returns the rows of a step's batch: passes over all `count` rows, each in a new random order.

    The rows depend only on the arguments, so that a resumed training uses the same batches.
    """
    size = min(size, count)
    places = range(step * size, (step + 1) * size)
    shuffled = {
        epoch: np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
        for epoch in {place // count for place in places}
    }
    return [int(shuffled[place // count][place % count]) for place in places]
